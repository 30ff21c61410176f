"""PEFT as the oracle on the architectures that people adapt, small and with random weights.

For each: every linear layer, and the names that are usual for the family with DoRA; parameters,
files in both directions, outputs, gradients and merged weights are compared.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
import transformers

import ince.lora

pytestmark = [
    # PEFT asks transformers by a name that is going away, and warns of what GPT-2's layers say.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    # Of a tied embedding; what becomes of it is compared.
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
    # PEFT does not look for patterns among parameters, and uses them all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Family:
    """How a model is made, what it takes, and which of its layers are usually adapted."""

    build: Callable[[], Any]
    names: tuple[str, ...]
    task: str | None = "CAUSAL_LM"
    inputs: dict[str, torch.Tensor] = field(default_factory=lambda: {"input_ids": IDS})
    ties: str = ""
    """An embedding whose weight is the output head's too."""

    def base(self) -> Any:
        torch.manual_seed(0)
        return self.build().eval()


def of(kind: str, head: str = "ForCausalLM", **values: Any) -> Callable[[], Any]:
    config = getattr(transformers, f"{kind}Config")
    model = getattr(transformers, f"{kind}{head}")
    return lambda: model(config(**values))


def sized(kind: str, **values: Any) -> Callable[[], Any]:
    return of(kind, **(SIZES | {"pad_token_id": 0} | values))


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MOE = {"num_experts_per_tok": 2}

FAMILIES = {
    "llama": Family(sized("Llama"), (*ATTENTION, "down_proj", "embed_tokens")),
    "qwen3": Family(sized("Qwen3", head_dim=4), (*ATTENTION, "gate_proj")),
    "mistral": Family(sized("Mistral", sliding_window=4), ATTENTION),
    "gemma 3": Family(
        lambda: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(
                **SIZES, head_dim=4, query_pre_attn_scalar=4, sliding_window=4, pad_token_id=0
            )
        ),
        ("q_proj", "up_proj", "embed_tokens"),
        ties="embed_tokens",
    ),
    "phi 3": Family(sized("Phi3"), ("qkv_proj", "o_proj", "gate_up_proj")),
    "gpt 2": Family(
        of("GPT2", "LMHeadModel", vocab_size=48, n_embd=16, n_layer=2, n_head=4, n_positions=32),
        ("c_attn", "c_proj", "wte"),
        ties="wte",
    ),
    "mixtral": Family(sized("Mixtral", num_local_experts=4, **MOE), ATTENTION[:2]),
    "qwen3 moe": Family(
        sized(
            "Qwen3Moe",
            head_dim=4,
            num_experts=4,
            moe_intermediate_size=8,
            **MOE,
        ),
        ATTENTION[:2],
    ),
    "bert": Family(
        of("Bert", "Model", **{k: v for k, v in SIZES.items() if "key_value" not in k}),
        ("query", "value", "word_embeddings", "dense"),
        task="FEATURE_EXTRACTION",
    ),
    "t5": Family(
        of(
            "T5",
            "ForConditionalGeneration",
            vocab_size=48,
            d_model=16,
            d_kv=4,
            d_ff=24,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            pad_token_id=0,
        ),
        ("q", "v", "wo", "shared"),
        task="SEQ_2_SEQ_LM",
        inputs={"input_ids": IDS, "decoder_input_ids": IDS[:, :4]},
        ties="shared",
    ),
}


def output(model: Any, family: Family) -> torch.Tensor:
    given = model(**family.inputs)
    return given.logits if "logits" in given else given.last_hidden_state


def outputs(model: Any, family: Family) -> torch.Tensor:
    with torch.no_grad():
        return output(model.eval(), family)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Pair:
    """The same config on both sides, with weights of their own; and their files."""

    family: Family
    values: dict[str, Any]
    ours: Any
    theirs: Any
    folders: tuple[Any, Any]


def adapted(side: Any, family: Family, values: dict[str, Any], **more: Any) -> Any:
    torch.manual_seed(1)
    config = side.LoraConfig(task_type=family.task, **{"r": 2} | values | more)
    model = side.get_peft_model(family.base(), config).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Small, since random models amplify what is large; a magnitude is spread.
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) / 2 + 0.75)
            elif "lora_" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope="module", params=[(f, d) for f in FAMILIES for d in ("all-linear", "dora")])
def pair(request, tmp_path_factory):
    name, how = request.param
    family = FAMILIES[name]
    names = how if how == "all-linear" else family.names
    values = {
        "target_modules": names if isinstance(names, str) else list(names),
        "use_dora": how == "dora",
    }
    sides = [adapted(side, family, values, init_lora_weights=False) for side in (ince.lora, peft)]
    folders = tuple(tmp_path_factory.mktemp(side) for side in ("ours", "theirs"))
    sides[0].save_pretrained(folders[0])
    sides[1].save_pretrained(folders[1], save_embedding_layers=False)
    return Pair(family, values, *sides, folders)


def test_parameters_have_the_same_names_shapes_and_number(pair, capsys):
    one, other = (
        {name: (p.shape, p.requires_grad) for name, p in side.named_parameters()}
        for side in (pair.ours, pair.theirs)
    )
    assert one == other
    lines = []
    for side in (pair.ours, pair.theirs):
        side.print_trainable_parameters()
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_our_adapter_loads_there(pair):
    wanted = outputs(pair.ours, pair.family)
    assert (wanted - outputs(pair.family.base(), pair.family)).abs().max() > 1e-3
    loaded = peft.PeftModel.from_pretrained(pair.family.base(), pair.folders[0])
    close(outputs(loaded, pair.family), wanted)


def test_their_adapter_loads_here(pair):
    wanted = outputs(pair.theirs, pair.family)
    loaded = ince.lora.PeftModel.from_pretrained(pair.family.base(), pair.folders[1])
    close(outputs(loaded, pair.family), wanted)


def test_the_files_say_the_same(pair):
    one, other = (json.loads((f / "adapter_config.json").read_text()) for f in pair.folders)
    names = [set(each.pop("target_modules")) for each in (one, other)]
    # Of all linear layers names may be listed in full or short; what they mean is compared above.
    assert names[0] == names[1] or pair.values["target_modules"] == "all-linear"
    # Of a MoE PEFT writes an empty list where there is none.
    names = [set(each.pop("target_parameters") or ()) for each in (one, other)]
    assert names[0] == names[1]
    assert one == other


def test_gradients_are_theirs(pair):
    grads = []
    for side in (ince.lora, peft):
        model = side.PeftModel.from_pretrained(
            pair.family.base(), pair.folders[0], is_trainable=True
        )
        output(model.eval(), pair.family).square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        if grads[1][name] is None:  # of a layer that was not called
            assert grad is None
            continue
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-6)


def test_merged_is_theirs_and_the_adapters(pair):
    wanted = outputs(pair.ours, pair.family)
    merged = pair.ours.merge_and_unload()
    close(outputs(merged, pair.family), wanted)
    close(outputs(pair.ours, pair.family), wanted)
    if pair.family.ties and pair.family.ties in pair.values["target_modules"]:
        return  # PEFT merges into the output head what is of the embedding
    loaded = peft.PeftModel.from_pretrained(pair.family.base(), pair.folders[0])
    close(outputs(loaded.merge_and_unload(), pair.family), wanted)


# PEFT has no custom for the others; here they get query and value.
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma 3", "gpt 2", "bert", "t5"])
def test_what_is_usual_for_the_family_is_the_same(name):
    family = FAMILIES[name]
    trained = [
        {n for n, p in model.named_parameters() if p.requires_grad}
        for model in (
            side.get_peft_model(family.base(), side.LoraConfig(r=2)) for side in (ince.lora, peft)
        )
    ]
    assert trained[0] == trained[1]
