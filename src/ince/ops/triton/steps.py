"""Optimizer steps and 8-bit state in Triton's language. Importing this needs Triton.

The arithmetic is that of the reference on a CPU, rounding for rounding: `fma` stands where
PyTorch fuses a product and a sum, and nowhere else, as these are launched without contraction;
divisions and roots are those of nearest rounding.

Shapes: tiles are (ROWS, 256), a row for each block of state, or (TILE,) of float32 moments.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

__all__ = [
    "adamw_8bit_kernel",
    "adamw_kernel",
    "code_8bit_kernel",
    "expand_8bit_kernel",
    "lion_8bit_kernel",
    "lion_kernel",
]

# The values of `ince.ops.codes`.
BLOCKSIZE: tl.constexpr = tl.constexpr(256)
FIRST_PLACE: tl.constexpr = tl.constexpr((127 - 24) << 7)
NUM_PLACES: tl.constexpr = tl.constexpr((127 << 7) - ((127 - 24) << 7) + 1)

INFINITY_BITS: tl.constexpr = tl.constexpr(0x7F800000)


@triton.jit
def _all(value: tl.tensor, like: tl.tensor) -> tl.tensor:
    return tl.full(like.shape, value, tl.float32)


@triton.jit
def _lerp(start: tl.tensor, end: tl.tensor, share: tl.tensor) -> tl.tensor:
    """As torch.lerp: reckoned from the nearer end."""
    is_near_start = share < 0.5
    factor = tl.where(is_near_start, share, share - 1.0)
    base = tl.where(is_near_start, start, end)
    return tl.fma(_all(factor, start), end - start, base)


@triton.jit
def _adamw(
    p: tl.tensor,
    g: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    decay: tl.tensor,
    share: tl.tensor,
    beta: tl.tensor,
    rest: tl.tensor,
    root: tl.tensor,
    eps: tl.tensor,
    size: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Parameter and moments after a step; the factors are those of `adamw_factors`."""
    m = _lerp(m, g, share)
    v = tl.fma(rest * g, g, v * beta)
    divisor = tl.div_rn(tl.sqrt_rn(v), _all(root, v)) + eps
    return p * decay + tl.div_rn(size * m, divisor), m, v


@triton.jit
def _lion(
    p: tl.tensor,
    g: tl.tensor,
    m: tl.tensor,
    decay: tl.tensor,
    share: tl.tensor,
    rest: tl.tensor,
    size: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    mixed = _lerp(m, g, share)
    sign = tl.where(mixed > 0.0, 1.0, tl.where(mixed < 0.0, -1.0, 0.0))
    # What is no number is none as a sign.
    sign = tl.where(mixed == mixed, sign, mixed)
    return p * decay + size * sign, _lerp(m, g, rest)


@triton.jit
def _expanded(
    code_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    map_ptr: tl.tensor,
    index: tl.tensor,
    mask: tl.tensor,
    block: tl.tensor,
    inside: tl.tensor,
) -> tl.tensor:
    """(ROWS, 256) float32; zero where there is nothing."""
    code = tl.load(code_ptr + index, mask=mask, other=0).to(tl.int32)
    scale = tl.load(absmax_ptr + block, mask=inside, other=0.0)
    return tl.where(mask, tl.load(map_ptr + code) * scale[:, None], 0.0)


@triton.jit
def _code(
    value: tl.tensor,
    code_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    threshold_ptr: tl.tensor,
    rank_ptr: tl.tensor,
    index: tl.tensor,
    mask: tl.tensor,
    block: tl.tensor,
    inside: tl.tensor,
) -> None:
    """Code (ROWS, 256) in 8 bits and store it with its scales.

    A block that is not finite has NaN for its scale, and codes of 0, as a block of zeros has.
    """
    value = tl.where(mask, value, 0.0)
    most = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    is_coded = (most > 0) & (most < INFINITY_BITS)
    scale = most.to(tl.float32, bitcast=True)
    scale = tl.where(most < INFINITY_BITS, scale, float("nan"))
    tl.store(absmax_ptr + block, scale, mask=inside)
    divisor = tl.where(is_coded, scale, 1.0)
    normalized = tl.div_rn(value, tl.broadcast_to(divisor[:, None], value.shape))
    bits = normalized.to(tl.int32, bitcast=True)
    place = ((bits & 0x7FFFFFFF) >> 16) - FIRST_PLACE
    # Of a block that is not coded, numbers may be anything.
    place = tl.minimum(tl.maximum(place, 0), NUM_PLACES - 1) + tl.where(bits < 0, NUM_PLACES, 0)
    rank = tl.load(rank_ptr + place).to(tl.int32)
    code = rank + (normalized > tl.load(threshold_ptr + rank)).to(tl.int32)
    code = tl.where(is_coded[:, None], code, 0)
    tl.store(code_ptr + index, code.to(tl.uint8), mask=mask)


@triton.jit
def _tile(
    count: tl.tensor, ROWS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of this program's blocks: numbers, and which are there; blocks, and which are there."""
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    index = block[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    return index, index < count, block, block * BLOCKSIZE < count


@triton.jit(do_not_specialize=["count"])
def code_8bit_kernel(
    value_ptr: tl.tensor,
    code_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    threshold_ptr: tl.tensor,
    rank_ptr: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """A program codes ROWS blocks."""
    index, mask, block, inside = _tile(count, ROWS)
    value = tl.load(value_ptr + index, mask=mask, other=0.0).to(tl.float32)
    _code(value, code_ptr, absmax_ptr, threshold_ptr, rank_ptr, index, mask, block, inside)


@triton.jit(do_not_specialize=["count"])
def expand_8bit_kernel(
    code_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    map_ptr: tl.tensor,
    out_ptr: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """A program expands ROWS blocks."""
    index, mask, block, inside = _tile(count, ROWS)
    value = _expanded(code_ptr, absmax_ptr, map_ptr, index, mask, block, inside)
    tl.store(out_ptr + index, value, mask=mask)


@triton.jit(do_not_specialize=["count"])
def adamw_kernel(
    p_ptr: tl.tensor,
    g_ptr: tl.tensor,
    m_ptr: tl.tensor,
    v_ptr: tl.tensor,
    count: tl.tensor,
    decay: tl.tensor,
    share: tl.tensor,
    beta: tl.tensor,
    rest: tl.tensor,
    root: tl.tensor,
    eps: tl.tensor,
    size: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """A program steps TILE numbers, with float32 moments."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = index < count
    p = tl.load(p_ptr + index, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + index, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + index, mask=mask, other=0.0)
    v = tl.load(v_ptr + index, mask=mask, other=0.0)
    p, m, v = _adamw(p, g, m, v, decay, share, beta, rest, root, eps, size)
    tl.store(p_ptr + index, p.to(p_ptr.dtype.element_ty), mask=mask)
    tl.store(m_ptr + index, m, mask=mask)
    tl.store(v_ptr + index, v, mask=mask)


@triton.jit(do_not_specialize=["count"])
def lion_kernel(
    p_ptr: tl.tensor,
    g_ptr: tl.tensor,
    m_ptr: tl.tensor,
    count: tl.tensor,
    decay: tl.tensor,
    share: tl.tensor,
    rest: tl.tensor,
    size: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """A program steps TILE numbers, with a float32 moment."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = index < count
    p = tl.load(p_ptr + index, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + index, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + index, mask=mask, other=0.0)
    p, m = _lion(p, g, m, decay, share, rest, size)
    tl.store(p_ptr + index, p.to(p_ptr.dtype.element_ty), mask=mask)
    tl.store(m_ptr + index, m, mask=mask)


@triton.jit(do_not_specialize=["count"])
def adamw_8bit_kernel(
    p_ptr: tl.tensor,
    g_ptr: tl.tensor,
    code1_ptr: tl.tensor,
    code2_ptr: tl.tensor,
    absmax1_ptr: tl.tensor,
    absmax2_ptr: tl.tensor,
    map1_ptr: tl.tensor,
    threshold1_ptr: tl.tensor,
    rank1_ptr: tl.tensor,
    map2_ptr: tl.tensor,
    threshold2_ptr: tl.tensor,
    rank2_ptr: tl.tensor,
    count: tl.tensor,
    decay: tl.tensor,
    share: tl.tensor,
    beta: tl.tensor,
    rest: tl.tensor,
    root: tl.tensor,
    eps: tl.tensor,
    size: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """A program steps ROWS blocks, whose moments it expands and codes again."""
    index, mask, block, inside = _tile(count, ROWS)
    p = tl.load(p_ptr + index, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + index, mask=mask, other=0.0).to(tl.float32)
    m = _expanded(code1_ptr, absmax1_ptr, map1_ptr, index, mask, block, inside)
    v = _expanded(code2_ptr, absmax2_ptr, map2_ptr, index, mask, block, inside)
    p, m, v = _adamw(p, g, m, v, decay, share, beta, rest, root, eps, size)
    tl.store(p_ptr + index, p.to(p_ptr.dtype.element_ty), mask=mask)
    _code(m, code1_ptr, absmax1_ptr, threshold1_ptr, rank1_ptr, index, mask, block, inside)
    _code(v, code2_ptr, absmax2_ptr, threshold2_ptr, rank2_ptr, index, mask, block, inside)


@triton.jit(do_not_specialize=["count"])
def lion_8bit_kernel(
    p_ptr: tl.tensor,
    g_ptr: tl.tensor,
    code_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    map_ptr: tl.tensor,
    threshold_ptr: tl.tensor,
    rank_ptr: tl.tensor,
    count: tl.tensor,
    decay: tl.tensor,
    share: tl.tensor,
    rest: tl.tensor,
    size: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """A program steps ROWS blocks, whose moment it expands and codes again."""
    index, mask, block, inside = _tile(count, ROWS)
    p = tl.load(p_ptr + index, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + index, mask=mask, other=0.0).to(tl.float32)
    m = _expanded(code_ptr, absmax_ptr, map_ptr, index, mask, block, inside)
    p, m = _lion(p, g, m, decay, share, rest, size)
    tl.store(p_ptr + index, p.to(p_ptr.dtype.element_ty), mask=mask)
    _code(m, code_ptr, absmax_ptr, threshold_ptr, rank_ptr, index, mask, block, inside)
