"""A small model, and adapters for it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ince.lora import LoraConfig, get_peft_model

IDS = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 0, 11, 4]])


@pytest.fixture
def llama():
    """A function that makes a Llama of two layers, the same each time."""

    def make(**values):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1} | values
        config = LlamaConfig(
            vocab_size=48, intermediate_size=24, num_hidden_layers=2, pad_token_id=0, **sizes
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def lora():
    """A function that makes a config whose adapter is not the identity."""

    def make(**values):
        values = {
            "r": 2,
            "target_modules": ["q_proj", "v_proj"],
            "init_lora_weights": False,
        } | values
        return LoraConfig(**values)

    return make


@pytest.fixture
def model(llama, lora):
    """A model with the adapters "default", "b" (r=3) and "c" (other layers)."""
    torch.manual_seed(1)
    model = get_peft_model(llama(), lora())
    model.add_adapter("b", lora(r=3))
    model.add_adapter("c", lora(target_modules=["q_proj", "down_proj"]))
    return model


@pytest.fixture
def logits():
    """A function that gives a model's logits for two rows."""

    def run(model, **kwargs):
        with torch.no_grad():
            return model(input_ids=IDS, **kwargs).logits

    return run
