"""The kernels that code and expand weights, in Triton's language. Importing this needs Triton.

Every result here equals the reference to the bit, so nothing may round otherwise than it does:

- a division is `div_rn`, since a plain one is approximate when compiled;
- a product followed by a sum is launched with ``enable_fp_fusion=False`` (see `launch`), since
  the compiler otherwise makes one operation, rounded once, of the two;
- a largest magnitude is taken of the bits as integers, which order as the magnitudes do, with
  infinity and NaN above all numbers, whatever a machine's maximum of floats does with NaN.

Shapes: tiles are (ROWS, COLS), a row within one block of the scales. All sizes are powers of
two. Offsets within a tile are 32-bit, those of tiles 64-bit.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from ince.ops.triton.nearest import nearest_rank, searched_scale

__all__ = [
    "code_absmax_kernel",
    "expand_absmax_kernel",
    "expand_kernel",
    "quantize_kernel",
    "scales",
    "values",
]

# Scales that share a scale; the value of `ince.ops.codes.ABSMAX_BLOCKSIZE`.
NESTED_BLOCKSIZE: tl.constexpr = tl.constexpr(256)

# Against division by zero, as in the reference: 1e-38 as the bits of a float32. As a number it is
# below the normal ones, and the compiler would go over to float64 for it.
LEAST_SCALE_BITS: tl.constexpr = tl.constexpr(0x006CE3EE)

# Steps of the grid on which 8-bit codes are looked up, as in the reference.
LAST_STEP: tl.constexpr = tl.constexpr(65535.0)


@triton.jit
def scales(
    absmax_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    block: tl.tensor,
    mask: tl.tensor,
    NESTED: tl.constexpr,
) -> tl.tensor:
    """float32 scales of the blocks numbered `block`, expanded if they are in 8 bits."""
    if NESTED:
        code = tl.load(absmax_ptr + block, mask=mask, other=0).to(tl.int32)
        nested = tl.load(nested_ptr + block // NESTED_BLOCKSIZE, mask=mask, other=0.0)
        scale = tl.load(map_ptr + code) * nested + tl.load(offset_ptr)
    else:
        scale = tl.load(absmax_ptr + block, mask=mask, other=0.0)
    return scale


@triton.jit
def values(code: tl.tensor, word: tl.tensor, ROWS: tl.constexpr, COLS: tl.constexpr) -> tl.tensor:
    """The values (ROWS, COLS) that words stand for, of `code` (16,) float32.

    The first weight is the high nibble of the lowest byte. Three rounds of `join` put eight in
    their order: the first sets the highest bit of a weight's number, 0 or 4, the last the lowest.

    `gather` looks codes up in shared memory, whose addresses take half as long to compute as
    those of a load; where each byte is used once, that is what a product's time goes into.
    """
    even = tl.join(tl.join((word >> 4) & 15, (word >> 20) & 15),
                   tl.join((word >> 12) & 15, (word >> 28) & 15))  # fmt: skip
    odd = tl.join(tl.join(word & 15, (word >> 16) & 15),
                  tl.join((word >> 8) & 15, (word >> 24) & 15))  # fmt: skip
    index = tl.reshape(tl.join(even, odd), (ROWS * COLS,))
    return tl.reshape(tl.gather(code, index, 0), (ROWS, COLS))


@triton.jit(do_not_specialize=["first_tile", "num_weights"])
def expand_kernel(
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    code_ptr: tl.tensor,
    out_ptr: tl.tensor,
    first_tile: tl.tensor,
    num_weights: tl.tensor,
    WHOLE: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """``out = code[q] * scale``: a program expands a tile of ROWS x COLS bytes.

    WHOLE tiles are read without masks, in words of 32 bits, one for a thread; the last one, where
    it is not whole, byte by byte and by itself.
    """
    start = (first_tile + tl.program_id(0).to(tl.int64)) * (ROWS * COLS)
    row = tl.arange(0, ROWS)
    index = row[:, None] * (COLS * 2) + tl.arange(0, COLS * 2)[None, :]
    # (ROWS,): COLS divides the bytes of a block, or is that number.
    block = (start * 2) // BLOCKSIZE + row
    if WHOLE:
        code = tl.load(code_ptr + tl.arange(0, 16))
        at = row[:, None] * (COLS // 4) + tl.arange(0, COLS // 4)[None, :]
        word = tl.load(packed_ptr + start // 4 + at)
        scale = scales(absmax_ptr, nested_ptr, offset_ptr, map_ptr, block, row >= 0, NESTED)
        value = values(code, word, ROWS, COLS * 2) * scale[:, None]
        tl.store(out_ptr + start * 2 + index, value.to(out_ptr.dtype.element_ty))
    else:
        left = tl.minimum(num_weights - start * 2, ROWS * COLS * 2).to(tl.int32)
        byte = row[:, None] * COLS + tl.arange(0, COLS)[None, :]
        pair = tl.load(packed_ptr + start + byte, mask=byte * 2 < left, other=0).to(tl.int32)
        inside = row * (COLS * 2) < left
        scale = scales(absmax_ptr, nested_ptr, offset_ptr, map_ptr, block, inside, NESTED)
        high = tl.load(code_ptr + (pair >> 4)) * scale[:, None]
        low = tl.load(code_ptr + (pair & 15)) * scale[:, None]
        value = tl.reshape(tl.join(high, low), (ROWS, COLS * 2)).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + start * 2 + index, value, mask=index < left)


@triton.jit
def _normalized(
    weight: tl.tensor,
    scale: tl.tensor,
    SHORT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
) -> tl.tensor:
    """Weights (ROWS, BLOCKSIZE) over their scales (ROWS,), clamped to ±1.

    They are multiplied by the inverse, or in a SHORT block divided, as in the reference.
    """
    if SHORT:
        normalized = tl.div_rn(weight, tl.broadcast_to(scale[:, None], (ROWS, BLOCKSIZE)))
    else:
        # As bits, positive numbers compare as whole numbers do.
        raised = tl.maximum(scale.to(tl.int32, bitcast=True), LEAST_SCALE_BITS)
        one = tl.full((ROWS,), 1.0, tl.float32)
        normalized = weight * tl.div_rn(one, raised.to(tl.float32, bitcast=True))[:, None]
    return tl.minimum(tl.maximum(normalized, -1.0), 1.0)


@triton.jit(do_not_specialize=["first_block", "num_weights"])
def quantize_kernel(
    weight_ptr: tl.tensor,
    midpoint_ptr: tl.tensor,
    order_ptr: tl.tensor,
    value_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    first_block: tl.tensor,
    num_weights: tl.tensor,
    SHORT: tl.constexpr,
    NUM_FACTORS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    ROUNDS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """A program codes ROWS blocks from `first_block` on: full ones, or the SHORT last one.

    Of `num_weights`, those before `first_block` included. With candidates for the scale, it
    searches them first. BLOCKSIZE = 2^ROUNDS.
    """
    block = first_block + tl.program_id(0).to(tl.int64) * ROWS
    start = block * BLOCKSIZE
    left = tl.minimum(num_weights - start, ROWS * BLOCKSIZE).to(tl.int32)
    row = tl.arange(0, ROWS)
    index = row[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    byte = row[:, None] * (BLOCKSIZE // 2) + tl.arange(0, BLOCKSIZE // 2)[None, :]
    inside = row * BLOCKSIZE < left
    if SHORT:
        mask = index < left
        byte_mask = byte * 2 < left
    else:
        # The same for a whole row, so that it is read in words of up to 16 bytes.
        mask = tl.broadcast_to(inside[:, None], (ROWS, BLOCKSIZE))
        byte_mask = tl.broadcast_to(inside[:, None], (ROWS, BLOCKSIZE // 2))
    weight = tl.load(weight_ptr + start + index, mask=mask, other=0.0).to(tl.float32)
    bits = weight.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    magnitude = tl.max(bits, axis=1)
    if SHORT:
        magnitude = tl.maximum(magnitude, LEAST_SCALE_BITS)
    scale = magnitude.to(tl.float32, bitcast=True)
    normalized = _normalized(weight, scale, SHORT, ROWS, BLOCKSIZE)
    if NUM_FACTORS > 0:
        scale = searched_scale(
            normalized, scale, midpoint_ptr, value_ptr, factor_ptr,
            NUM_FACTORS, ROWS, BLOCKSIZE, ROUNDS,
        )  # fmt: skip
        normalized = _normalized(weight, scale, SHORT, ROWS, BLOCKSIZE)
    code = tl.load(order_ptr + nearest_rank(normalized, midpoint_ptr)).to(tl.int32)
    high, low = tl.split(tl.reshape(code, (ROWS, BLOCKSIZE // 2, 2)))
    tl.store(packed_ptr + start // 2 + byte, ((high << 4) | low).to(tl.uint8), mask=byte_mask)
    tl.store(absmax_ptr + block + row, scale, mask=inside)


@triton.jit
def expand_absmax_kernel(
    code_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_scales: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """``out = map[code] * nested + offset``: a program expands TILE scales."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = index < num_scales
    scale = scales(code_ptr, nested_ptr, offset_ptr, map_ptr, index, mask, True)
    tl.store(out_ptr + index, scale, mask=mask)


@triton.jit
def code_absmax_kernel(
    absmax_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    midpoint_ptr: tl.tensor,
    code_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    num_scales: tl.tensor,
    BLOCKSIZE: tl.constexpr,
) -> None:
    """A program codes one block of BLOCKSIZE scales in 8 bits; `offset` is known."""
    block = tl.program_id(0).to(tl.int64)
    index = block * BLOCKSIZE + tl.arange(0, BLOCKSIZE)
    mask = index < num_scales
    offset = tl.load(offset_ptr)
    # What fills up the last block is 0 after the offset is taken off, and counts for nothing.
    centered = tl.where(mask, tl.load(absmax_ptr + index, mask=mask, other=0.0) - offset, 0.0)
    bits = centered.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    nested = tl.max(bits, axis=0).to(tl.float32, bitcast=True)
    tl.store(nested_ptr + block, nested)
    is_zero = nested == 0.0
    divisor = tl.full((BLOCKSIZE,), 0.0, tl.float32) + tl.where(is_zero, 1.0, nested)
    inverse = tl.div_rn(tl.full((BLOCKSIZE,), 1.0, tl.float32), divisor)
    normalized = centered * inverse
    normalized = tl.where(normalized > 1.0, 1.0, tl.where(normalized < -1.0, -1.0, normalized))
    step = ((normalized + 1.0) * 0.5 * LAST_STEP + 0.5).to(tl.int32).to(tl.float32)
    last = tl.full((BLOCKSIZE,), LAST_STEP, tl.float32)
    on_grid = tl.div_rn(step * 2.0, last) - 1.0
    # How many of 255 midpoints lie strictly below: eight halvings of what is left.
    code = tl.full((BLOCKSIZE,), 0, tl.int32)
    for i in tl.static_range(8):
        half = 128 >> i
        below = tl.load(midpoint_ptr + code + (half - 1)) < on_grid
        code += tl.where(below, half, 0)
    code = tl.where(is_zero, 0, code)
    tl.store(code_ptr + index, code.to(tl.uint8), mask=mask)
