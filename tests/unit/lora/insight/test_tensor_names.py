from pathlib import Path

import torch

from ince.lora.insight.settings import read_settings
from ince.lora.insight.tensor_names import sort_tensors

P = "base_model.model."


def sort(names, **config):
    settings = read_settings({"peft_type": "LORA", **config}, where=Path("x"))
    return sort_tensors({name: torch.zeros(2, 2) for name in names}, settings)


def test_parts_of_layers():
    found = sort(
        [
            f"{P}m.q.lora_A.weight",
            f"{P}m.q.lora_B.weight",
            f"{P}m.q.lora_B.bias",
            f"{P}m.q.lora_magnitude_vector",
            f"{P}m.embed.lora_embedding_A",
            f"{P}m.embed.lora_embedding_B",
            f"{P}m.e.base_layer.lora_A.weight",
        ]
    )
    assert set(found.parts["m.q"]) == {"A", "B", "bias", "magnitude"}
    assert found.embeddings == {"m.embed"}
    assert "m.e.base_layer" in found.parts
    assert found.unknown == []


def test_adalora_and_vera():
    found = sort([f"{P}m.q.lora_A", f"{P}m.q.lora_B", f"{P}m.q.lora_E"])
    assert set(found.parts["m.q"]) == {"A", "B", "E"}
    found = sort(["base_model.vera_A", "base_model.vera_B", f"{P}m.q.vera_lambda_b"])
    assert set(found.shared) == {"A", "B"}
    assert set(found.parts["m.q"]) == {"lambda_b"}


def test_what_is_trained_whole():
    names = [f"{P}lm_head.weight", f"{P}model.score.dense.weight", f"{P}q.base_layer.bias"]
    tokens = f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta"
    found = sort([*names, tokens], modules_to_save=["score"], bias="all")
    assert {each.name: each.kind for each in found.trained} == {
        "lm_head.weight": "module",
        "model.score.dense.weight": "module",
        "q.bias": "bias",
        "model.embed_tokens": "token rows",
    }


def test_copies_of_the_base_and_what_nobody_knows():
    found = sort([f"{P}embed_tokens.base_layer.weight", f"{P}q.ia3_l", "q.lora_A.weight", P])
    assert found.copies == ["embed_tokens.base_layer.weight"]
    assert found.unknown == [P, f"{P}q.ia3_l", "q.lora_A.weight"]


def test_a_bias_that_was_not_to_be_trained_is_not_known():
    assert sort([f"{P}q.bias"]).unknown == [f"{P}q.bias"]
