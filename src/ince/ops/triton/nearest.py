"""Which of sixteen values is nearest, and the search for a better scale, in Triton's language.

The rule of the search is that of `ince.ops.reference.scale_search`, to the bit: sums go by
halves, divisions are `div_rn`, and what calls this is launched without contraction of products
and sums. Importing this needs Triton.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

__all__ = ["nearest_rank", "searched_scale"]

# Scales outside 2^-100 ... 2^100 are kept, as in the reference.
LEAST_SEARCHED: tl.constexpr = tl.constexpr(2.0**-100)
LARGEST_SEARCHED: tl.constexpr = tl.constexpr(2.0**100)


@triton.jit
def nearest_rank(normalized: tl.tensor, midpoint_ptr: tl.tensor) -> tl.tensor:
    """How many of fifteen midpoints lie strictly below each number."""
    rank = (normalized > tl.load(midpoint_ptr)).to(tl.int32)
    for i in tl.static_range(1, 15):
        rank += (normalized > tl.load(midpoint_ptr + i)).to(tl.int32)
    return rank


@triton.jit
def _sum_by_halves(
    values: tl.tensor, ROWS: tl.constexpr, SIZE: tl.constexpr, ROUNDS: tl.constexpr
) -> tl.tensor:
    """(ROWS, SIZE) → (ROWS,), SIZE = 2^ROUNDS: the second half onto the first, until one."""
    for i in tl.static_range(ROUNDS):
        values = tl.sum(tl.reshape(values, (ROWS, 2, SIZE >> (i + 1))), axis=1)
    return tl.reshape(values, (ROWS,))


@triton.jit
def searched_scale(
    normalized: tl.tensor,
    scale: tl.tensor,
    midpoint_ptr: tl.tensor,
    value_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    NUM_FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    ROUNDS: tl.constexpr,
) -> tl.tensor:
    """(ROWS,) float32: the candidate of least error for each block of `normalized`.

    Args:
        normalized: (ROWS, BLOCKSIZE) weights over their `scale`, in [-1, 1].
        scale: (ROWS,) their largest magnitudes.
        value_ptr: the sixteen values, ascending.
        factor_ptr: NUM_FACTORS candidates.
    """
    best_gain = tl.full((ROWS,), float("-inf"), tl.float32)
    best = tl.full((ROWS,), 1.0, tl.float32)
    for i in range(NUM_FACTORS):
        rank = nearest_rank(normalized * tl.load(factor_ptr + i), midpoint_ptr)
        value = tl.load(value_ptr + rank)
        product = _sum_by_halves(normalized * value, ROWS, BLOCKSIZE, ROUNDS)
        square = _sum_by_halves(value * value, ROWS, BLOCKSIZE, ROUNDS)
        # A zero block has only zeros; it keeps its scale in any case.
        found = tl.div_rn(product, tl.where(square > 0.0, square, 1.0))
        gain = product * found
        best = tl.where(gain > best_gain, found, best)
        best_gain = tl.where(gain > best_gain, gain, best_gain)
    is_searched = (scale >= LEAST_SEARCHED) & (scale <= LARGEST_SEARCHED)
    return tl.where(is_searched, scale * best, scale)
