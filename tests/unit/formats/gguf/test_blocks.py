"""Every quantized type expands as the reference implementation does, to the bit."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from ince.formats.gguf.blocks import EXPANDED_TYPES, expand_blocks
from ince.formats.gguf.types import TENSOR_TYPES

# Where the float16 numbers of a block are: those must be finite to be compared.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def random_blocks(name: str, num_blocks: int, seed: int = 0) -> np.ndarray:
    _, width = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (num_blocks, width), dtype=np.uint8)
    for start in HALVES[name]:
        half = blocks[:, start : start + 2].copy().view(np.float16)
        half[~np.isfinite(half)] = 6e-8  # the smallest that is not zero
        blocks[:, start : start + 2] = half.view(np.uint8)
    return blocks


def expanded(name: str, blocks: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    block_weights, _ = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    out = torch.full((len(blocks) * block_weights,), 7.0, dtype=dtype)
    expand_blocks(torch.from_numpy(blocks), name, out)
    return out


def test_the_table_of_types_is_that_of_ggml() -> None:
    ours = {n: (t.name, t.block_weights, t.block_bytes) for n, t in TENSOR_TYPES.items()}
    theirs = {t.value: (t.name, *GGML_QUANT_SIZES[t]) for t in GGMLQuantizationType}
    # Never in a file; the package has its size from before ggml halved two numbers in it.
    del ours[9], theirs[9]
    assert ours == theirs


def test_every_type_is_compared() -> None:
    assert HALVES.keys() == EXPANDED_TYPES.keys()


# 5000 blocks are several pieces, the last one short.
@pytest.mark.parametrize("num_blocks", [1, 5000])
@pytest.mark.parametrize("name", EXPANDED_TYPES)
def test_random_blocks(name: str, num_blocks: int) -> None:
    blocks = random_blocks(name, num_blocks)
    expected = torch.from_numpy(dequantize(blocks, GGMLQuantizationType[name])).flatten()
    # Bits, not values: -0.0 and 0.0 are told apart.
    got = expanded(name, blocks, torch.float32)
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(
            expanded(name, blocks, dtype).view(torch.int16), expected.to(dtype).view(torch.int16)
        )


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_was_quantized_comes_back_nearly(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
    blocks = quantize(weights, GGMLQuantizationType[name])
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    got = expanded(name, blocks.reshape(-1, block_bytes), torch.float32).view(64, 256)
    error = (got - torch.from_numpy(weights)).abs().mean()
    assert error < {"4": 0.12, "5": 0.06, "8": 0.01}[name[1]]


def test_no_blocks() -> None:
    assert len(expanded("Q4_0", np.empty((0, 18), np.uint8), torch.bfloat16)) == 0
