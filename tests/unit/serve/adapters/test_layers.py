"""Rows of one step with different adapters give what each adapter gives alone."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import ince
from ince.errors import AdapterError, InceError, ModelReferenceError
from ince.lora import LoraConfig, get_peft_model
from ince.models import logits_only_at
from ince.serve.adapters import PackedAdapter, ServedModel, load_adapter, serve_layers

KINDS: dict[str, dict[str, object]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rslora": {"r": 9, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"r": 3, "use_dora": True, "target_modules": ["q_proj", "down_proj", "o_proj"]},
    "bias": {"r": 2, "lora_bias": True, "target_modules": ["up_proj", "k_proj"]},
    "patterns": {
        "r": 4,
        "target_modules": r"model\.layers\.\d\.mlp\.(up|down)_proj",
        "rank_pattern": {"down_proj": 7, "layers.1.mlp.up_proj": 1},
        "alpha_pattern": {r"layers\.0\.mlp\.up_proj": 20},
    },
    "one_layer": {"r": 5, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    "head": {"r": 3, "target_modules": ["lm_head", "q_proj"]},
}


def write(model, folder: Path, seed: int = 0, **config) -> Path:
    """An adapter as training leaves it: nothing in it is zero."""
    torch.manual_seed(seed)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    adapted.save_pretrained(folder)
    return folder


def alone(model, folder: Path | None, tokens: torch.Tensor) -> torch.Tensor:
    """(N, V) logits of one adapter, by `PeftModel`."""
    if folder is not None:
        model = ince.PeftModel.from_pretrained(copy.deepcopy(model), folder)
    with torch.no_grad():
        return model.eval()(input_ids=tokens[:, None]).logits[:, 0]


def logits(served: ServedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        model = served.model
        return model(input_ids=tokens[:, None], use_cache=False).logits[:, 0]  # type: ignore[operator]


@pytest.fixture(scope="module", params=["float32", "nf4", "biases"])
def base(request, small_llama):
    if request.param == "nf4":
        from ince.quant import NF4Config, quantize_model

        model = small_llama()
        quantize_model(model, NF4Config(compute_dtype="float32"))
        return model.eval()
    if request.param == "biases":
        model = small_llama(3, attention_bias=True, mlp_bias=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        return model
    return small_llama()


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write(base, root / name, seed, **config)
        for seed, (name, config) in enumerate(KINDS.items())
    }


def test_a_mixed_step_equals_each_adapter_alone(base, folders):
    names = [None, *KINDS]
    counts = [2, 1, 3, 1, 2, 1, 4, 2]
    tokens = torch.arange(7, 7 + 5 * sum(counts), 5)
    expected = [
        alone(base, folders[name] if name else None, part)
        for name, part in zip(names, tokens.split(counts), strict=True)
    ]
    served = serve_layers(base)
    try:
        packed = {name: load_adapter(served, folders[name]) for name in KINDS}
        segments, start = [], 0
        for name, count in zip(names, counts, strict=True):
            segments.append((packed[name] if name else None, start, start + count))
            start += count
        for _ in range(2):  # the second time by tables that were kept
            with served.steps.use(segments):
                found = logits(served, tokens)
            torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
        # Only the last row of each reaches the output layer.
        ends = torch.tensor([stop - 1 for _, _, stop in segments])
        wanted = [(each, i, i + 1) for i, (each, _, _) in enumerate(segments)]
        zeros = torch.zeros_like(ends)
        with served.steps.use(segments, wanted), logits_only_at(base, ends, zeros):
            last = base(input_ids=tokens[:, None], use_cache=False).logits[0]
        torch.testing.assert_close(last, torch.cat(expected)[ends], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(served, tokens), alone(base, None, tokens))
    finally:
        served.close()


def test_blocks_of_16_bits_are_near(base, folders):
    tokens = torch.arange(5, 60, 5)
    expected = alone(base, folders["plain"], tokens)
    served = serve_layers(base)
    try:
        packed = load_adapter(served, folders["plain"], dtype=torch.bfloat16)
        with served.steps.use([(packed, 0, len(tokens))]):
            found = logits(served, tokens)
    finally:
        served.close()
    assert packed.num_bytes * 2 == packed.block.numel() * 4
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert not torch.equal(found, expected)


def test_what_is_served_is_undone(small_llama, tmp_path):
    model = small_llama()
    before = {name: id(module) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    served = serve_layers(model)
    packed = load_adapter(served, write(model, tmp_path / "a", r=2, target_modules=["q_proj"]))
    tokens = torch.arange(4)
    with served.steps.use([(packed, 0, 4)]):
        logits(served, tokens)
    served.close()
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(not module._forward_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_peft_gives_what_peft_gives(small_llama, tmp_path):
    peft = pytest.importorskip("peft")
    model = small_llama()
    tokens = torch.arange(3, 30, 3)
    for seed, kind in enumerate(("rslora", "dora", "patterns")):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**KINDS[kind]))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
            expected = adapted.eval()(input_ids=tokens[:, None]).logits[:, 0]
        adapted.save_pretrained(tmp_path / kind)
        served = serve_layers(model)
        try:
            packed = load_adapter(served, tmp_path / kind)
            with served.steps.use([(packed, 0, len(tokens))]):
                torch.testing.assert_close(logits(served, tokens), expected, rtol=1e-4, atol=1e-4)
        finally:
            served.close()


class Routed(nn.Module):
    """A layer that some tokens pass, one that none does, and one that all pass twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.once, self.some = nn.Linear(8, 8), nn.Linear(8, 8)
        self.never, self.twice = nn.Linear(8, 8), nn.Linear(8, 8)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, input_ids, **_):
        h = self.once(self.embed(input_ids))
        h = torch.cat([self.some(h[:2]), h[2:]])
        return self.twice(self.twice(h))


def test_layers_that_not_every_token_passes_once_are_not_served(tmp_path):
    model = Routed().eval()
    served = serve_layers(model)
    assert [layer.name for layer in served.layers] == ["once"]
    for name, why in {
        "some": "1 times, with 2 rows",
        "never": "0 times",
        "twice": "2 times",
        "embed": "not linear",
    }.items():
        folder = write(model, tmp_path / name, r=2, target_modules=["once", name])
        with pytest.raises(AdapterError) as caught:
            load_adapter(served, folder)
        assert why in str(caught.value)
        assert name in str(caught.value)
    served.close()


def test_rows_that_are_not_the_step_s_are_an_error(small_llama, tmp_path):
    model = small_llama()
    served = serve_layers(model)
    packed = load_adapter(served, write(model, tmp_path / "a", r=2, target_modules=["q_proj"]))
    with pytest.raises(InceError, match="other rows"), served.steps.use([(packed, 0, 3)]):
        logits(served, torch.arange(4))
    # And nothing of it is left in the next.
    torch.testing.assert_close(logits(served, torch.arange(4)), alone(model, None, torch.arange(4)))
    served.close()


def test_a_base_with_adapters_in_it_is_refused(small_llama):
    model = get_peft_model(small_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="already"):
        serve_layers(model.get_base_model())


def test_a_model_that_reads_no_rows_is_refused():
    class Other(Routed):
        def forward(self, input_ids, **_):
            raise RuntimeError("it wants pictures")

    with pytest.raises(ModelReferenceError, match="pictures"):
        serve_layers(Other())


def test_one_adapter_is_many_segments_and_none(small_llama, tmp_path):
    model = small_llama()
    tokens = torch.arange(6)
    folder = write(model, tmp_path / "a", r=2, target_modules=["q_proj"])
    expected = alone(model, folder, tokens)
    served = serve_layers(model)
    packed: PackedAdapter = load_adapter(served, folder)
    with served.steps.use([(packed, 0, 2), (packed, 2, 2), (None, 2, 3), (packed, 3, 6)]):
        found = logits(served, tokens)
    torch.testing.assert_close(found[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])
    torch.testing.assert_close(found[2:3], alone(model, None, tokens[2:3]))
    served.close()
