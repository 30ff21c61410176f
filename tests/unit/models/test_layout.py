"""Stored tensors find their places, or are refused before anything is read."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    PermuteForRope,
    WeightConverter,
)

from ince.errors import ModelReferenceError
from ince.models import layout as layout_module
from ince.models.layout import Layout, find_layout
from ince.models.source import Entry

SMALL = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}


class InMemory:
    """A source of tensors that are there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.folder = Path("nowhere")
        self.tensors = dict(tensors)
        self.entries = {
            name: Entry(tuple(t.shape), "F32", t.numel() * 4, Path("file"))
            for name, t in tensors.items()
        }

    def order(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes}))


def stored(model: PreTrainedModel) -> dict[str, Tensor]:
    tied = set(model.all_tied_weights_keys)
    return {n: t for n, t in model.state_dict().items() if n not in tied}


def assembled(layout: Layout, source: InMemory) -> dict[str, Tensor]:
    """What the regions say, in the simplest way."""
    result: dict[str, Tensor] = {}
    for name, target in layout.targets.items():
        tensor = torch.full(target.shape, torch.nan)
        for piece in target.pieces:
            assert tensor[piece.region].isnan().all()
            tensor[piece.region] = source.tensors[piece.stored].float()
        assert not tensor.isnan().any()
        result[name] = tensor
    return result


def test_names_that_agree_are_taken_as_they_are() -> None:
    model = llama()
    source = InMemory(stored(model))
    layout = find_layout(model, source, torch.float32)
    assert layout is not None
    assert layout.conversions == ()
    found = assembled(layout, source)
    assert found.keys() == source.tensors.keys()
    assert all(torch.equal(found[name], source.tensors[name]) for name in found)


def test_prefix_of_the_base_model_is_added_and_taken_away() -> None:
    model = llama(tie_word_embeddings=True)
    inner = {name.removeprefix("model."): t for name, t in stored(model).items()}
    layout = find_layout(model, InMemory(inner), torch.float32)
    assert layout is not None
    assert layout.targets.keys() == stored(model).keys()


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_put_where_transformers_puts_them(kind: str, tmp_path: Path) -> None:
    if kind == "mixtral":
        small = {**SMALL, "num_local_experts": 11, "num_experts_per_tok": 1}
        model: PreTrainedModel = MixtralForCausalLM(MixtralConfig(**small))
    else:
        small = {**SMALL, "num_experts": 11, "moe_intermediate_size": 6, "head_dim": 4}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**small))
    model.save_pretrained(tmp_path)  # one by one, as the files of such models have them
    from ince.models.source import SafetensorsSource

    files = SafetensorsSource(tmp_path)
    source = InMemory({name: files.read(name) for name in files.order()})
    assert any(".experts.10." in name for name in source.tensors)
    layout = find_layout(model, source, torch.float32)
    assert layout is not None
    assert layout.conversions
    found, expected = assembled(layout, source), stored(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def convert_with(monkeypatch: pytest.MonkeyPatch, *converters: WeightConverter) -> None:
    from transformers import conversion_mapping

    monkeypatch.setattr(
        conversion_mapping, "get_model_conversion_mapping", lambda _: list(converters)
    )


def test_tensors_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    tensors = stored(model)
    for i in range(2):
        stem = f"model.layers.{i}.mlp.up_proj"
        whole = tensors.pop(f"{stem}.weight")
        tensors[f"{stem}_a.weight"], tensors[f"{stem}_b.weight"] = whole.split([5, 7])
    convert_with(
        monkeypatch,
        WeightConverter(
            ["mlp.up_proj_a.weight", "mlp.up_proj_b.weight"], "mlp.up_proj.weight", [Concatenate(0)]
        ),
    )
    source = InMemory(tensors)
    layout = find_layout(model, source, torch.float32)
    assert layout is not None
    found = assembled(layout, source)
    assert all(torch.equal(found[name], t) for name, t in stored(model).items())


@pytest.mark.parametrize("operations", [[Chunk(0)], [PermuteForRope()], [MergeModulelist(1)]])
def test_other_conversions_are_left_to_transformers(
    operations: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_with(
        monkeypatch, WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", operations)
    )
    model = llama()
    assert find_layout(model, InMemory(stored(model)), torch.float32) is None


@pytest.mark.parametrize("change", ["one less", "wider", "shorter"])
def test_experts_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    small = {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 1}
    model = MixtralForCausalLM(MixtralConfig(**small))
    model.save_pretrained(tmp_path)
    from ince.models.source import SafetensorsSource

    files = SafetensorsSource(tmp_path)
    tensors = {name: files.read(name) for name in files.order()}
    name = next(name for name in tensors if name.endswith("experts.2.w3.weight"))
    if change == "one less":
        del tensors[name]
    elif change == "wider":
        tensors[name] = torch.zeros(12, 9)
    else:
        tensors[name] = torch.zeros(11, 8)
    with pytest.raises(ModelReferenceError, match="do not fit the config"):
        find_layout(model, InMemory(tensors), torch.float32)


def test_missing_unknown_and_misshaped_tensors_are_named() -> None:
    model = llama()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = stored(model)
    with pytest.raises(ModelReferenceError, match=r"absent(.|\n)*up_proj"):
        find_layout(model, InMemory({n: t for n, t in tensors.items() if n != name}), torch.float32)
    with pytest.raises(ModelReferenceError, match=r"not part of the model(.|\n)*extra"):
        find_layout(model, InMemory({**tensors, "extra": torch.zeros(1)}), torch.float32)
    with pytest.raises(ModelReferenceError, match=r"up_proj.weight has another shape"):
        find_layout(model, InMemory({**tensors, name: torch.zeros(1)}), torch.float32)


def test_leftovers_of_old_versions_are_passed_over() -> None:
    model = llama()
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(2) for i in range(2)}
    layout = find_layout(model, InMemory({**stored(model), **old}), torch.float32)
    assert layout is not None
    assert layout.targets.keys() == stored(model).keys()


def test_copies_of_tied_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "_RUN", 100)
    model = llama(tie_word_embeddings=True)
    tensors = stored(model)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    layout = find_layout(model, InMemory({**tensors, head: tensors[embedding]}), torch.float32)
    assert layout is not None
    assert head not in layout.targets
    other = {**tensors, head: tensors[embedding] + 1}
    assert find_layout(model, InMemory(other), torch.float32) is None
    swapped = {**tensors, head: tensors.pop(embedding)}
    swapped.pop(embedding)
    assert find_layout(model, InMemory(swapped), torch.float32) is None


def test_types_of_the_model() -> None:
    model = llama().bfloat16()
    model.model.norm.float()
    layout = find_layout(model, InMemory(stored(model)), torch.bfloat16)
    assert layout is not None
    assert layout.targets["model.norm.weight"].dtype == torch.float32
    assert layout.targets["model.embed_tokens.weight"].dtype == torch.bfloat16
