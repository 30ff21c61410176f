"""Rotary position embedding on a GPU: a program turns all heads of a token.

The reference's sums of two products, each rounded by itself: results equal it to the bit.
Importing this needs Triton.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ince.ops.triton.start import start

__all__ = ["rope", "rope_", "rope_input_grad"]


@triton.jit
def rope_kernel(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_heads: tl.tensor,
    rotated: tl.tensor,
    size: tl.tensor,
    x_sequence: tl.tensor,
    x_token: tl.tensor,
    x_head: tl.tensor,
    x_number: tl.tensor,
    out_sequence: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    out_number: tl.tensor,
    angles_sequence: tl.tensor,
    INVERSE: tl.constexpr,
    COPY: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """Heads of one token, `rotated` of their `size` numbers; with COPY, the others too.

    Strides are in elements; HEADS at a time, HALF covers rotated / 2, SIZE a head.
    """
    token = tl.program_id(0).to(tl.int64)
    sequence, place = token // num_tokens, token % num_tokens
    x_ptr += sequence * x_sequence + place * x_token
    out_ptr += sequence * out_sequence + place * out_token
    half = rotated // 2
    i = tl.arange(0, HALF)
    angle = sequence * angles_sequence + place * rotated + i
    cos_low = tl.load(cos_ptr + angle, mask=i < half, other=0.0).to(tl.float32)[None, :]
    cos_up = tl.load(cos_ptr + angle + half, mask=i < half, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin_ptr + angle, mask=i < half, other=0.0).to(tl.float32)[None, :]
    sin_up = tl.load(sin_ptr + angle + half, mask=i < half, other=0.0).to(tl.float32)[None, :]
    if INVERSE:
        # The sine's place follows the number it multiplies.
        sin_low, sin_up = -sin_up, -sin_low
    for first in range(0, num_heads, HEADS):
        head = (first + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = (head < num_heads) & (i[None, :] < half)
        at = head * x_head + i[None, :] * x_number
        low = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(x_ptr + at + half * x_number, mask=mask, other=0.0).to(tl.float32)
        # Where a tile has fewer numbers than the program threads, some threads read the same:
        # all must have read before one writes in place.
        tl.debug_barrier()
        kind = out_ptr.dtype.element_ty
        at = head * out_head + i[None, :] * out_number
        tl.store(out_ptr + at, (low * cos_low - up * sin_low).to(kind), mask=mask)
        tl.store(out_ptr + at + half * out_number, (up * cos_up + low * sin_up).to(kind), mask=mask)
        if COPY:
            j = tl.arange(0, SIZE)[None, :]
            mask = (head < num_heads) & (j >= rotated) & (j < size)
            rest = tl.load(x_ptr + head * x_head + j * x_number, mask=mask, other=0.0)
            tl.store(out_ptr + head * out_head + j * out_number, rest, mask=mask)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rope`."""
    results = [x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3])) for x in (q, k)]
    for x, result in zip((q, k), results, strict=True):
        _turn(x, result.transpose(1, 2), cos, sin, inverse=False)
    return results[0], results[1]


def rope_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> None:
    """See `ince.ops.rope_`."""
    for x in (q, k):
        _turn(x, x, cos, sin, inverse=inverse)


def rope_input_grad(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rope_input_grad`."""
    results = [x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3])) for x in (dq, dk)]
    for x, result in zip((dq, dk), results, strict=True):
        _turn(x.transpose(1, 2), result, cos, sin, inverse=True)
    return results[0], results[1]


def _turn(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> None:
    """From (B, L, H, D) to the same, of any strides; `out` may be `x`."""
    num_sequences, num_tokens, num_heads, size = x.shape
    rotated = cos.shape[-1]
    if not x.numel():
        return
    half = max(triton.next_power_of_2(rotated // 2), 1)
    with torch.cuda.device_of(x):
        start(
            rope_kernel,
            (num_sequences * num_tokens,),
            x,
            out,
            cos.contiguous(),
            sin.contiguous(),
            num_tokens,
            num_heads,
            rotated,
            size,
            *x.stride(),
            *out.stride(),
            num_tokens * rotated if cos.shape[0] > 1 else 0,
            INVERSE=inverse,
            COPY=out is not x and rotated < size,
            HEADS=max(1, min(triton.next_power_of_2(num_heads), 1024 // half)),
            HALF=half,
            SIZE=triton.next_power_of_2(size),
            num_warps=4,
        )
