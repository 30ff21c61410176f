"""The kernels that multiply with a 4-bit weight, in Triton's language. Importing needs Triton.

A weight is expanded in registers as it is read, a quarter of the bytes of 16 bits. Sums are
float32. These kernels agree with the reference within the rounding of its sums, not to the bit.

Along the inputs a weight is read in groups of GROUP weights that share a scale: GROUP is a power
of two that divides the row's length, the block size and BLOCK_K. So the row's length must be a
multiple of 32; `products.py`'s caller expands weights of other shapes instead.

Shapes: x (M, K), weight (N, K), y (M, N). Tiles are (BLOCK_N, GROUPS, GROUP / 2) bytes.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import triton
import triton.language as tl

from ince.ops.triton.kernels import scales

__all__ = ["gemv_kernel", "input_grad_kernel", "linear_kernel"]


@triton.jit
def _pairs(
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
    """Bytes (BLOCK_N, GROUPS, GROUP / 2) as int32, and scales (BLOCK_N, GROUPS, 1).

    Args:
        n: (BLOCK_N,) rows of the weight.
        k: the first of GROUPS * GROUP columns, a multiple of GROUP.
    """
    group = k + tl.arange(0, GROUPS) * GROUP
    inside = (n < N)[:, None] & (group < K)[None, :]
    # (BLOCK_N, GROUPS): number of a group's first weight. int64: a weight may exceed 2^31.
    first = n.to(tl.int64)[:, None] * K + group[None, :]
    scale = scales(absmax_ptr, nested_ptr, offset_ptr, map_ptr, first // BLOCKSIZE, inside, NESTED)
    byte = tl.arange(0, GROUP // 2)[None, None, :]
    at = packed_ptr + (first // 2)[:, :, None] + byte
    mask = tl.broadcast_to(inside[:, :, None], at.shape)
    return tl.load(at, mask=mask, other=0).to(tl.int32), scale[:, :, None]


@triton.jit
def _tile(
    code_ptr: tl.tensor,
    pair: tl.tensor,
    scale: tl.tensor,
    dtype: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """Weights (BLOCK_N, BLOCK_K), rounded to `dtype` as the reference rounds them."""
    high = (tl.load(code_ptr + (pair >> 4)) * scale).to(dtype)
    low = (tl.load(code_ptr + (pair & 15)) * scale).to(dtype)
    return tl.reshape(tl.join(high, low), (BLOCK_N, BLOCK_K))


@triton.jit
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
    """y (N,) = x (K,) Wᵀ + b: a program makes BLOCK_N outputs and reads x in float32.

    The weight is not rounded to the type of x on the way, so the result is nearer to the exact
    one than the reference's.
    """
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.full((BLOCK_N, GROUPS, GROUP // 2), 0.0, tl.float32)
    for k in range(0, K, BLOCK_K):
        pair, scale = _pairs(
            packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
            n, k, N, K, NESTED, BLOCKSIZE, GROUP, GROUPS,
        )  # fmt: skip
        column = k + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + column, mask=column < K, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x, (1, GROUPS, GROUP // 2, 2)))
        high = tl.load(code_ptr + (pair >> 4))
        low = tl.load(code_ptr + (pair & 15))
        total += (high * even + low * odd) * scale
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
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    x_row = x_ptr + m.to(tl.int64)[:, None] * K
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for k in range(0, K, BLOCK_K):
        pair, scale = _pairs(
            packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
            n, k, N, K, NESTED, BLOCKSIZE, GROUP, BLOCK_K // GROUP,
        )  # fmt: skip
        column = k + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(x_row + column, mask=(m[:, None] < M) & (column < K), other=0.0)
        weight = _tile(code_ptr, pair, scale, x.dtype, BLOCK_N, BLOCK_K)
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
    k = tl.program_id(0) * BLOCK_K
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    grad_row = grad_ptr + m.to(tl.int64)[:, None] * N
    total = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        pair, scale = _pairs(
            packed_ptr, absmax_ptr, nested_ptr, offset_ptr, map_ptr,
            n, k, N, K, NESTED, BLOCKSIZE, GROUP, BLOCK_K // GROUP,
        )  # fmt: skip
        mask = (m[:, None] < M) & (n[None, :] < N)
        grad = tl.load(grad_row + n[None, :], mask=mask, other=0.0)
        weight = _tile(code_ptr, pair, scale, grad.dtype, BLOCK_N, BLOCK_K)
        total = tl.dot(grad, weight, total)
    column = k + tl.arange(0, BLOCK_K)[None, :]
    at = out_ptr + m.to(tl.int64)[:, None] * K + column
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=(m[:, None] < M) & (column < K))
