"""Small GGUF files as llama.cpp would write them."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from transformers.convert_slow_tokenizer import bytes_to_unicode

HIDDEN, WIDE, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<unk>", "<s>", "</s>"]


def tensors(vocabulary: int) -> dict[str, tuple[str, np.ndarray]]:
    """Type and random weights under llama.cpp's names."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    drawn = {"token_embd": ("Q8_0", draw(vocabulary, HIDDEN)), "output_norm": ("F32", draw(HIDDEN))}
    head = HIDDEN // HEADS
    for i in range(LAYERS):
        drawn |= {
            f"blk.{i}.attn_norm": ("F32", draw(HIDDEN)),
            f"blk.{i}.ffn_norm": ("F32", draw(HIDDEN)),
            f"blk.{i}.attn_q": ("Q4_1", draw(HIDDEN, HIDDEN)),
            f"blk.{i}.attn_k": ("Q4_0", draw(KV_HEADS * head, HIDDEN)),
            f"blk.{i}.attn_v": ("F16", draw(KV_HEADS * head, HIDDEN)),
            f"blk.{i}.attn_output": ("BF16", draw(HIDDEN, HIDDEN)),
            f"blk.{i}.ffn_gate": ("Q4_1", draw(WIDE, HIDDEN)),
            f"blk.{i}.ffn_up": ("Q5_0", draw(WIDE, HIDDEN)),
            f"blk.{i}.ffn_down": ("Q5_1", draw(HIDDEN, WIDE)),
        }
    return drawn


@pytest.fixture
def write_gguf():
    """A function that writes a Llama of two small layers, with its tokenizer.

    `metadata` and `extra` tensors are added to what such a file has, or take its place;
    None takes a tensor away.
    """

    def write(path: Path, metadata=None, extra=None, architecture: str = "llama") -> Path:
        tokens = [*SPECIAL, *bytes_to_unicode().values(), "he"]
        writer = GGUFWriter(path, architecture)
        writer.add_name("Tiny")
        numbers = {
            "block_count": LAYERS,
            "context_length": 128,
            "embedding_length": HIDDEN,
            "feed_forward_length": WIDE,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "rope.dimension_count": HIDDEN // HEADS,
            "rope.freq_base": 10000.0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "vocab_size": len(tokens),
        }
        for key, value in (numbers | (metadata or {})).items():
            name = f"{architecture}.{key}"
            if isinstance(value, str):
                writer.add_string(name, value)
            elif isinstance(value, int):
                writer.add_uint32(name, value)
            else:
                writer.add_float32(name, value)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        kinds = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(tokens) - 3)
        writer.add_token_types(kinds)
        writer.add_token_merges(["h e"])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        drawn = tensors(len(tokens)) | (extra or {})
        for name, content in drawn.items():
            if content is not None:
                kind = GGMLQuantizationType[content[0]]
                stem = name if name.endswith(".bias") else f"{name}.weight"
                writer.add_tensor(stem, quantize(content[1], kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
