"""The number formats: sixteen NF4 values, and the 256 values of the signed 8-bit dynamic map.

Both are part of the stored format, so every machine must have the same bits.
"""

from typing import Final

import torch
from torch import Tensor

__all__ = ["ABSMAX_BLOCKSIZE", "BLOCKSIZES", "NF4_CODE", "dynamic_map", "nf4_code"]

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


def nf4_code() -> Tensor:
    """`NF4_CODE` as (16,) float32 on the CPU."""
    return torch.tensor(NF4_CODE, dtype=torch.float32, device="cpu")


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
