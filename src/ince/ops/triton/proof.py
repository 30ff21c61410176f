"""What the kernels must show on a device before they are used there.

They are compiled for each kind of GPU by that machine's own Triton, and a compiler may fuse two
roundings into one or flush small numbers to zero. A small tensor says so in a second.

Importing this needs Triton.
"""

import torch

import ince.ops.reference as reference
from ince.ops.triton.launch import dequantize_4bit, quantize_4bit

__all__ = ["difference"]

_BLOCKSIZE = 64


def difference(device: torch.device) -> str | None:
    """How results on `device` differ from the reference's on the CPU; None where they do not."""
    for dtype in (torch.bfloat16, torch.float32):
        weight = _weight().to(dtype)
        packed, absmax = reference.quantize_4bit(weight, _BLOCKSIZE, "nf4", False)
        found = quantize_4bit(weight.to(device), _BLOCKSIZE, "nf4", False)
        if not all(map(_is_equal, found, (packed, absmax))):
            return f"quantizing {dtype} gives other codes or scales than the reference"
        codes, nested, offset = reference.quantize_absmax(absmax)
        shape = tuple(weight.shape)
        expected = reference.dequantize_4bit(
            packed, codes, nested, offset, _BLOCKSIZE, shape, dtype, "nf4"
        )
        expanded = dequantize_4bit(
            packed.to(device),
            codes.to(device),
            nested.to(device),
            offset.to(device),
            _BLOCKSIZE,
            shape,
            dtype,
            "nf4",
        )
        if not _is_equal(expanded, expected):
            return f"expanding to {dtype} gives other weights than the reference"
    return None


def _weight() -> torch.Tensor:
    """A few thousand weights of many magnitudes, a block of zeros and a short last block."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64 * _BLOCKSIZE + 31, generator=generator)
    blocks = weight[: 64 * _BLOCKSIZE].view(64, _BLOCKSIZE)
    blocks *= torch.logspace(-42, 3, 64)[:, None]
    blocks[7] = 0
    return weight


def _is_equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    # As bytes: the sign of a zero counts, and NaN equals itself.
    return torch.equal(found.cpu().view(torch.uint8), expected.view(torch.uint8))
