"""A better scale at the same bits: of some candidates for each block, the one of least error.

The largest magnitude of a block is exact in a 4-bit format, and the other weights pay for it.
Scaled a little lower, or higher, most blocks have a smaller squared error; what is stored has
the same form, so every reader of the format reads it. The largest weight of a block then errs
more than before: what that does to a model is measured in ``benchmarks/nf4_quality.py``.

The rule, which every backend follows to the bit. All arithmetic is float32, each operation
rounded by itself (no multiplication fused with an addition), division and all as IEEE 754 has
it. For a block with scale ``a``, its largest magnitude as without a search:

1. A block with ``a`` below 2⁻¹⁰⁰ or above 2¹⁰⁰ keeps it; zero blocks are among these.
2. ``u[i]`` are its weights as without a search: ``w[i] * (1 / a)``, of a short last block
   ``w[i] / a``, clamped to ±1. A short block is filled up with zeros.
3. For each factor ``k`` of the block size's row below, in its order:
   ``c[i]`` is the nearest value to ``u[i] * k``, found by midpoints as codes are (beyond ±1
   that is the outermost one);
   ``p = Σ u[i] * c[i]`` and ``q = Σ c[i] * c[i]``; ``g = p / q``; ``gain = p * g``.
4. The first ``k`` of the greatest ``gain`` wins. The stored scale is ``s = a * g``, and the
   codes are those of a block whose scale is ``s``.

Sums go by halves: of n numbers (n a power of two) the second half is added to the first,
``e[i] + e[i + n/2]``, until one is left. Other ways of adding give other bits.

Why a gain: for codes ``c`` the best scale is ``g = Σuc / Σc²``, and the squared error is then
``Σu² - (Σuc)² / Σc²``. So a candidate is judged with the best scale for its codes, in one pass,
which is what lets few candidates do. 1 is among them, and picking codes again can only lower
the error: it is never above that of the largest magnitude, but for rounding. Where the largest
magnitude is exact, no gain is greater, and 1 stays: it stands first.

Eight candidates come within 0.4% of the error of the best of hundreds, for blocks of up to
128 normal or t-distributed weights; larger blocks hold larger outliers, and their best scale lies
as low as 0.4 of the largest magnitude, so that they take sixteen, to within 0.7%.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.ops.reference.nearest import nearest_value

__all__ = ["FACTORS", "SEARCHED_RANGE", "WIDE_FACTORS", "factors", "search_scales", "sum_by_halves"]

FACTORS: Final = tuple(n / 64 for n in (64, 58, 61, 67, 70, 73, 76, 80))
"""For blocks of up to 128 weights. Each is exact in float32."""

WIDE_FACTORS: Final = tuple(
    n / 16 for n in (16, 15, 17, 18, 19, 20, 21, 22, 24, 26, 28, 30, 32, 34, 36, 40)
)
"""For larger blocks."""

SEARCHED_RANGE: Final = (2.0**-100, 2.0**100)
"""Scales outside, where products could leave float32, stay as they are."""

_LARGEST_OF_FEW = 128


def factors(blocksize: int) -> tuple[float, ...]:
    """The candidates for blocks of this size, in the order in which they are tried."""
    return FACTORS if blocksize <= _LARGEST_OF_FEW else WIDE_FACTORS


def sum_by_halves(values: Tensor) -> Tensor:
    """(blocks, n) → (blocks,), n a power of two: the second half onto the first, until one."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


def search_scales(normalized: Tensor, absmax: Tensor, blocksize: int, quant_type: str) -> None:
    """Replace the scales of some blocks by better ones, in place.

    Args:
        normalized: weights over their scales, in [-1, 1], flat; the last block may be short.
        absmax: (blocks,) float32, the largest magnitude of each block.
        blocksize: weights that share a scale.
        quant_type: the sixteen values.
    """
    missing = absmax.numel() * blocksize - normalized.numel()
    blocks = F.pad(normalized, (0, missing)).view(-1, blocksize)
    best_gain = best = torch.empty(0)
    for number, factor in enumerate(factors(blocksize)):
        values = nearest_value(blocks * factor, quant_type)
        product = sum_by_halves(blocks * values)
        square = sum_by_halves(values.mul_(values))
        scale = product / square
        gain = product * scale
        if number == 0:
            best_gain, best = gain, scale
        else:
            is_better = gain > best_gain
            best_gain = torch.where(is_better, gain, best_gain)
            best = torch.where(is_better, scale, best)
    low, high = SEARCHED_RANGE
    is_searched = (absmax >= low) & (absmax <= high)
    # What a block outside the range has found may be no number; it is not looked at.
    absmax.copy_(torch.where(is_searched, absmax * best, absmax))
