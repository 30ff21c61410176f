"""The number formats: sixteen values of four bits, and the 256 of the 8-bit dynamic maps.

All are part of stored formats, so every machine must have the same bits.
"""

from typing import Final

import torch
from torch import Tensor

__all__ = [
    "ABSMAX_BLOCKSIZE",
    "BLOCKSIZES",
    "CODES",
    "FIRST_PLACE",
    "NF4_CODE",
    "NUM_PLACES",
    "QUANT_TYPES",
    "STATE_BLOCKSIZE",
    "code_of",
    "dynamic_map",
    "dynamic_ranks",
    "dynamic_thresholds",
]

BLOCKSIZES: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that may share a scale."""

ABSMAX_BLOCKSIZE: Final = 256
"""Scales that share a scale of their own in double quantization."""

STATE_BLOCKSIZE: Final = 256
"""Numbers of an optimizer's state in 8 bits that share a scale."""

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

FIRST_PLACE: Final = (127 - 24) << 7
"""The upper sixteen bits of 2**-24, where the table of `dynamic_ranks` begins."""

NUM_PLACES: Final = (127 << 7) - FIRST_PLACE + 1
"""How many upper sixteen bits there are from there to 1."""

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


def dynamic_map(*, signed: bool = True) -> Tensor:
    """A dynamic map: (256,) float32 on the CPU, ascending; 0 is at index 127, or 0 if unsigned.

    Decade i of seven, 10**(i-6), is cut into 2**i equal parts over [0.1, 1], and the middle of
    each part is a value; so are its negative, 0 and 1. The unsigned map has no negatives, and
    twice as many parts. bitsandbytes takes the cuts from ``torch.linspace``, whose last bit
    depends on whether the processor fuses multiplication and addition. Here they are always
    those of a processor that does, as nearly all do.

    Source: 8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561.
    """
    low, high = (torch.tensor(edge, dtype=torch.float32, device="cpu") for edge in (0.1, 1.0))
    decades: list[Tensor] = []
    for i in range(7):
        num_parts = 2**i if signed else 2 ** (i + 1)
        # In float64 the product of two float32 is exact, so that each cut is rounded once.
        step = ((high - low) / num_parts).double()
        index = torch.arange(num_parts + 1, dtype=torch.float64, device="cpu")
        from_low = (low.double() + step * index).float()
        from_high = (high.double() - step * (num_parts - index)).float()
        cuts = torch.where(index < (num_parts + 1) // 2, from_low, from_high)
        decades.append((cuts[:-1] + cuts[1:]) / 2 * 10 ** (i - 6))
    positive = torch.cat(decades)
    negative = -positive.flip(0) if signed else positive[:0]
    return torch.cat([negative, torch.zeros_like(low)[None], positive, high[None]])


def dynamic_thresholds(*, signed: bool = True) -> Tensor:
    """Which value of `dynamic_map` stands for a number: (255,) float32 on the CPU, ascending.

    A number's code is how many thresholds lie strictly below it. They are the midpoints of
    neighboring values, but for the first of the unsigned map, which is 0: there a number above
    zero never becomes zero. A second moment of zero would be a divisor of nothing.
    """
    values = dynamic_map(signed=signed)
    thresholds = 0.5 * (values[:-1] + values[1:])
    if not signed:
        thresholds[0] = 0.0
    return thresholds


def dynamic_ranks(*, signed: bool = True) -> Tensor:
    """(2, NUM_PLACES) uint8 on the CPU: how many thresholds lie below all of some numbers.

    Row 0 is of positive numbers, row 1 of negative ones, each by the upper sixteen bits of its
    magnitude, from `FIRST_PLACE` on; what is smaller is at the first place. Seven bits of
    mantissa are finer than any decade of the maps, so that at most one threshold lies between the
    numbers of a place: a code is a rank from here, and one comparison.
    """
    thresholds = dynamic_thresholds(signed=signed)
    upper = torch.arange(NUM_PLACES, dtype=torch.int32, device="cpu") + FIRST_PLACE
    # The lowest number: of positive ones the one without lower bits, of negative ones the one
    # with all of them.
    positive = (upper << 16).view(torch.float32)
    positive[0] = 0.0
    negative = -((upper << 16) | 0xFFFF).view(torch.float32)
    ranks = torch.bucketize(torch.stack([positive, negative]), thresholds)
    return ranks.to(torch.uint8)
