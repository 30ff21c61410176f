"""The number formats: sixteen values of four bits, and the 256 of the signed 8-bit dynamic map.

All are part of stored formats, so every machine must have the same bits.
"""

from typing import Final

import torch
from torch import Tensor

__all__ = [
    "ABSMAX_BLOCKSIZE",
    "BLOCKSIZES",
    "CODES",
    "NF4_CODE",
    "QUANT_TYPES",
    "code_of",
    "dynamic_map",
]

BLOCKSIZES: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that may share a scale."""

ABSMAX_BLOCKSIZE: Final = 256
"""Scales that share a scale of their own in double quantization."""

NF4_CODE: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution over [-1, 1], zero exact. Source: QLoRA, arXiv:2305.14314,
in the construction of its code; equation 4 of the paper gives another table."""

_FP4_MAGNITUDES: Final = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)

CODES: Final = {
    "nf4": NF4_CODE,
    # Sign, two bits of exponent, one of mantissa, in the order of bitsandbytes' bit patterns.
    # There is no negative zero: code 8 is zero too.
    "fp4": tuple(0.0 if m == 0 else sign * m / 12 for sign in (1, -1) for m in _FP4_MAGNITUDES),
    # Fifteen equal steps around zero. The sixteenth code has a value, and is never written.
    "int4": (*((q - 7) / 7 for q in range(15)), 1.0),
}
"""Value of each code, by format. FP4 and INT4 are there to be compared with."""

QUANT_TYPES: Final = tuple(CODES)
"""Names of the formats."""


def code_of(quant_type: str) -> Tensor:
    """The values of a format by their code, as (16,) float32 on the CPU."""
    return torch.tensor(CODES[quant_type], dtype=torch.float32, device="cpu")


def dynamic_map() -> Tensor:
    """The signed dynamic map: (256,) float32 on the CPU, ascending, 0 at index 127.

    Decade i of seven, 10**(i-6), is cut into 2**i equal parts over [0.1, 1], and the middle of
    each part is a value; so are its negative, 0 and 1. bitsandbytes takes the cuts from
    ``torch.linspace``, whose last bit depends on whether the processor fuses multiplication
    and addition. Here they are always those of a processor that does, as nearly all do.

    Source: 8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561.
    """
    low, high = (torch.tensor(edge, dtype=torch.float32, device="cpu") for edge in (0.1, 1.0))
    decades: list[Tensor] = []
    for i in range(7):
        num_parts = 2**i
        # In float64 the product of two float32 is exact, so that each cut is rounded once.
        step = ((high - low) / num_parts).double()
        index = torch.arange(num_parts + 1, dtype=torch.float64, device="cpu")
        from_low = (low.double() + step * index).float()
        from_high = (high.double() - step * (num_parts - index)).float()
        cuts = torch.where(index < (num_parts + 1) // 2, from_low, from_high)
        decades.append((cuts[:-1] + cuts[1:]) / 2 * 10 ** (i - 6))
    positive = torch.cat(decades)
    return torch.cat([-positive.flip(0), torch.zeros_like(low)[None], positive, high[None]])
