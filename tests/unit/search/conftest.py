"""A recipe over a model of two small layers, with held-out rows."""

import json

import pytest
import torch

from ince.recipe import parse_recipe


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, small_tokenizer):
    """A folder with a small random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def read(tmp_path, tiny_model):
    """A function that makes the recipe with these ``key=value`` in it."""
    for name, first in (("train", 0), ("eval", 40)):
        rows = [
            {"prompt": f"Question {i}?", "completion": f"Answer {i}."}
            for i in range(first, first + 12)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    values = {
        "model": {"base": str(tiny_model), "quantize": None, "compute_dtype": "float32"},
        "lora": {"r": 2, "dropout": 0.1},
        "data": {
            "train": str(tmp_path / "train.jsonl"),
            "eval": str(tmp_path / "eval.jsonl"),
            "max_length": 64,
        },
        "train": {"max_steps": 9, "epochs": 9, "batch_tokens": 128, "lr": 1e-2},
        "evaluate": {"num_samples": 0},
        "output": str(tmp_path / "run"),
    }
    return lambda overrides=(): parse_recipe(values, overrides=overrides)
