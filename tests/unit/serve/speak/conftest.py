"""A model with words, two adapters that change what it says, and one that no engine takes."""

from dataclasses import dataclass

import pytest
import torch

from ince.lora import LoraConfig, get_peft_model


@dataclass(frozen=True)
class Said:
    role: str
    content: str


@pytest.fixture(scope="module")
def make_model(small_tokenizer):
    """A function that makes a float32 Llama of two layers, always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**changes):
        torch.manual_seed(0)
        settings = {
            "vocab_size": len(small_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            # So random a model would seldom say the same for long.
            "initializer_range": 0.2,
        }
        return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()

    return make


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, make_model):
    """Folders by name."""
    root = tmp_path_factory.mktemp("adapters")
    found = {}
    for seed, (name, settings) in enumerate(
        {
            "lora": {"r": 4, "target_modules": "all-linear"},
            "dora": {"r": 2, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
            "whole": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            "untrained": {"r": 2, "target_modules": ["q_proj"]},
        }.items()
    ):
        model = get_peft_model(make_model(), LoraConfig(lora_alpha=8, **settings))
        torch.manual_seed(seed)
        for key, parameter in model.named_parameters():
            if name != "untrained" and parameter.requires_grad and "lora_A" not in key:
                parameter.data += torch.randn_like(parameter) * 0.3
        found[name] = root / name
        model.save_pretrained(found[name])
    return found


@pytest.fixture
def talk():
    """A conversation of so many turns."""

    def make(*contents):
        roles = ["user", "assistant"] * len(contents)
        return [Said(role, content) for role, content in zip(roles, contents, strict=False)]

    return make
