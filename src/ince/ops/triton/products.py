"""The kernels that multiply with a 4-bit weight, in Triton's language. Importing needs Triton.

A weight is expanded in registers as it is read, a quarter of the bytes of 16 bits. Sums are
float32. These kernels agree with the reference within the rounding of its sums, not to the bit.

The packed weight is read in words of 32 bits, eight weights each. Along the inputs it is cut into
groups of GROUP weights that share a scale: GROUP is a power of two of at least 32 that divides
the row's length, the block size and BLOCK_K. `multiply` expands weights of other shapes instead.

Shapes: x (M, K), weight (N, K), y (M, N); BLOCK_K = GROUPS * GROUP, GROUP = WORDS * 8.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from ince.ops.triton.kernels import scales, values

__all__ = ["gemv_kernel", "input_grad_kernel", "linear_kernel"]


@triton.jit
def _words(
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Packed words (BLOCK_N, BLOCK_K / 8) and scales (BLOCK_N, GROUPS) of a tile.

    Args:
        n: (BLOCK_N,) rows of the weight.
        k: the first of GROUPS * GROUP columns, a multiple of GROUP.

    A row's words are one dimension, not groups of words: neighbors must go to neighboring
    threads, and Triton before 3.7 gives a third dimension's threads to the rows.
    """
    WORDS: tl.constexpr = GROUP // 8
    group = k // 8 + tl.arange(0, GROUPS) * WORDS
    inside = (n < N)[:, None] & (group < K // 8)[None, :]
    # int64: a weight may exceed 2^31 words.
    row = n.to(tl.int64)[:, None] * (K // 8)
    block = (row + group[None, :]) // (BLOCKSIZE // 8)
    scale = scales(absmax_ptr, nested_ptr, offset_ptr, map_ptr, block, inside, NESTED)
    column = (k // 8 + tl.arange(0, GROUPS * WORDS))[None, :]
    mask = (n < N)[:, None] & (column < K // 8)
    return tl.load(packed_ptr + row + column, mask=mask, other=0), scale


@triton.jit
def _weights(
    code: tl.tensor,
    word: tl.tensor,
    scale: tl.tensor,
    dtype: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr,
) -> tl.tensor:
    """Weights (BLOCK_N, BLOCK_K), rounded to `dtype` as the reference rounds them."""
    value = tl.reshape(values(code, word, BLOCK_N, BLOCK_K), (BLOCK_N, GROUPS, BLOCK_K // GROUPS))
    return tl.reshape((value * scale[:, :, None]).to(dtype), (BLOCK_N, BLOCK_K))


@triton.jit
def _row(
    x_ptr: tl.tensor, k: tl.tensor, K: tl.tensor, dtype: tl.constexpr, BLOCK_K: tl.constexpr
) -> tl.tensor:
    """Columns from `k` on of the only row of x, as float32 (1, BLOCK_K / 8, 8).

    A row of 16-bit numbers is read as words of 32 bits, two columns each, the first in the low
    half: four for a word of the weight, in one load by the thread that has that word.
    """
    word = (k // 8 + tl.arange(0, BLOCK_K // 8))[:, None]
    if dtype == tl.float32:
        at = word * 8 + tl.arange(0, 8)[None, :]
        x = tl.load(x_ptr + at, mask=at < K, other=0.0)
    else:
        at = word * 4 + tl.arange(0, 4)[None, :]
        mask = tl.broadcast_to(word < K // 8, at.shape)
        both = tl.load(x_ptr + at, mask=mask, other=0)
        if dtype == tl.bfloat16:
            # A bfloat16 is the upper half of a float32.
            even = (both << 16).to(tl.float32, bitcast=True)
            odd = (both & -65536).to(tl.float32, bitcast=True)
        else:
            even = both.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            odd = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        x = tl.join(even, odd)
    return tl.reshape(x, (1, BLOCK_K // 8, 8))


# K is not specialized: where it is known to be a multiple of 16, the compiler reads two words at
# a time, and then moves them to the threads that have their columns of x.
@triton.jit(do_not_specialize=["K"])
def gemv_kernel(
    x_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    code_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y (N,) = x (K,) Wᵀ + b: a program makes BLOCK_N outputs.

    Sums of eight products, all in one thread, are multiplied by the scale of their group. The
    weight is not rounded to the type of x on the way, so that the result is nearer to the exact
    one than the reference's. The words of a step are read during the step before.
    """
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    WORDS: tl.constexpr = GROUP // 8
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    code = tl.load(code_ptr + tl.arange(0, 16))
    total = tl.full((BLOCK_N, GROUPS, WORDS), 0.0, tl.float32)
    word, scale = _words(
        packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
        n, 0, N, K, NESTED, BLOCKSIZE, GROUP, GROUPS,
    )  # fmt: skip
    for k in range(0, K, BLOCK_K):
        next_word, next_scale = _words(
            packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
            n, k + BLOCK_K, N, K, NESTED, BLOCKSIZE, GROUP, GROUPS,
        )  # fmt: skip
        x = _row(x_ptr, k, K, y_ptr.dtype.element_ty, BLOCK_K)
        value = tl.reshape(values(code, word, BLOCK_N, BLOCK_K), (BLOCK_N, BLOCK_K // 8, 8))
        part = tl.reshape(tl.sum(value * x, axis=2), (BLOCK_N, GROUPS, WORDS))
        total += part * scale[:, :, None]
        word, scale = next_word, next_scale
    y = tl.sum(tl.sum(total, axis=2), axis=1)
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def linear_kernel(
    x_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    code_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y (M, N) = x (M, K) Wᵀ + b: a program makes a tile (BLOCK_M, BLOCK_N)."""
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    code = tl.load(code_ptr + tl.arange(0, 16))
    x_row = x_ptr + m.to(tl.int64)[:, None] * K
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for k in range(0, K, BLOCK_K):
        word, scale = _words(
            packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
            n, k, N, K, NESTED, BLOCKSIZE, GROUP, GROUPS,
        )  # fmt: skip
        column = k + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(x_row + column, mask=(m[:, None] < M) & (column < K), other=0.0)
        weight = _weights(code, word, scale, x.dtype, BLOCK_N, BLOCK_K, GROUPS)
        total = tl.dot(x, tl.trans(weight), total)
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = y_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(at, total.to(y_ptr.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def input_grad_kernel(
    grad_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    absmax_ptr: tl.tensor,
    nested_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    map_ptr: tl.tensor,
    code_ptr: tl.tensor,
    out_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """out (M, K) = grad (M, N) W: a program makes a tile (BLOCK_M, BLOCK_K)."""
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    k = tl.program_id(0) * BLOCK_K
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    code = tl.load(code_ptr + tl.arange(0, 16))
    grad_row = grad_ptr + m.to(tl.int64)[:, None] * N
    total = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        word, scale = _words(
            packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
            n, k, N, K, NESTED, BLOCKSIZE, GROUP, GROUPS,
        )  # fmt: skip
        mask = (m[:, None] < M) & (n[None, :] < N)
        grad = tl.load(grad_row + n[None, :], mask=mask, other=0.0)
        weight = _weights(code, word, scale, grad.dtype, BLOCK_N, BLOCK_K, GROUPS)
        total = tl.dot(grad, weight, total)
    column = k + tl.arange(0, BLOCK_K)[None, :]
    at = out_ptr + m.to(tl.int64)[:, None] * K + column
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=(m[:, None] < M) & (column < K))
