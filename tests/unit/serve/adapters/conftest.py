"""A base small enough to be made anew wherever one is changed."""

import pytest
import torch


@pytest.fixture(scope="session")
def small_llama():
    """A function that makes a Llama of two layers and 120 tokens with random weights, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 3, **changes) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": 120,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
        }
        return LlamaForCausalLM(LlamaConfig(**(settings | changes))).requires_grad_(False).eval()

    return make
