"""Root mean square normalization on a GPU: a program for each row, in float32.

The first pass over a row takes its sum, the second writes; what the second reads is still in the
cache. Sums are taken in another order than the reference's, so results equal its within rounding.
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

from ince.ops.norm import rounds_before_weight, type_of_result
from ince.ops.triton.start import start

__all__ = ["rms_norm", "rms_norm_add_input_grad_", "rms_norm_input_grad"]

# Columns that a program holds at a time, at most.
_COLS = 4096


@triton.jit
def rms_norm_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    N: tl.tensor,
    eps: tl.tensor,
    offset: tl.tensor,
    ROUND_FIRST: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """A row of y = x * rstd * (offset + weight), and its rstd."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * N
    y_ptr += row * N
    squares = tl.zeros((COLS,), tl.float32)
    for first in range(0, N, COLS):
        col = first + tl.arange(0, COLS)
        x = tl.load(x_ptr + col, mask=col < N, other=0.0).to(tl.float32)
        squares += x * x
    rstd = 1.0 / tl.sqrt_rn(tl.sum(squares, 0) / N + eps)
    tl.store(rstd_ptr + row, rstd)
    for first in range(0, N, COLS):
        col = first + tl.arange(0, COLS)
        x = tl.load(x_ptr + col, mask=col < N, other=0.0)
        weight = tl.load(weight_ptr + col, mask=col < N, other=0.0).to(tl.float32)
        y = x.to(tl.float32) * rstd
        if ROUND_FIRST:
            y = y.to(x.dtype).to(tl.float32) * weight
        else:
            y = y * (weight + offset)
        tl.store(y_ptr + col, y.to(y_ptr.dtype.element_ty), mask=col < N)


@triton.jit
def rms_norm_input_grad_kernel(
    residual_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    N: tl.tensor,
    offset: tl.tensor,
    ADD: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """A row of dx = rstd * (g - n * mean(g * n)), added to the residual's with ADD."""
    row = tl.program_id(0).to(tl.int64) * N
    rstd = tl.load(rstd_ptr + tl.program_id(0))
    products = tl.zeros((COLS,), tl.float32)
    for first in range(0, N, COLS):
        col = first + tl.arange(0, COLS)
        x = tl.load(x_ptr + row + col, mask=col < N, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row + col, mask=col < N, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + col, mask=col < N, other=0.0).to(tl.float32)
        products += dy * (weight + offset) * (x * rstd)
    mean = tl.sum(products, 0) / N
    for first in range(0, N, COLS):
        col = first + tl.arange(0, COLS)
        x = tl.load(x_ptr + row + col, mask=col < N, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row + col, mask=col < N, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + col, mask=col < N, other=0.0).to(tl.float32)
        dx = rstd * (dy * (weight + offset) - x * rstd * mean)
        if ADD:
            dx += tl.load(residual_ptr + row + col, mask=col < N, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row + col, dx.to(dx_ptr.dtype.element_ty), mask=col < N)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float, weight_in_float32: bool
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rms_norm`."""
    y = x.new_empty(x.shape, dtype=type_of_result(x, weight, offset, weight_in_float32))
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if x.numel():
        with torch.cuda.device_of(x):
            start(
                rms_norm_kernel,
                (rstd.numel(),),
                x.contiguous(),
                weight.contiguous(),
                y,
                rstd,
                x.shape[-1],
                eps,
                offset,
                ROUND_FIRST=rounds_before_weight(offset, weight_in_float32),
                **_tile(x.shape[-1]),
            )
    return y, rstd


def rms_norm_input_grad(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> Tensor:
    """See `ince.ops.rms_norm_input_grad`."""
    dx = x.new_empty(x.shape)
    _input_grad(None, dy, x, weight, rstd, offset, dx)
    return dx


def rms_norm_add_input_grad_(
    residual: Tensor, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> None:
    """See `ince.ops.rms_norm_add_input_grad_`."""
    rows = residual.contiguous()
    _input_grad(rows, dy, x, weight, rstd, offset, rows)
    if rows is not residual:
        residual.copy_(rows)


def _input_grad(
    residual: Tensor | None,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: float,
    dx: Tensor,
) -> None:
    if not x.numel():
        return
    with torch.cuda.device_of(x):
        start(
            rms_norm_input_grad_kernel,
            (rstd.numel(),),
            residual,
            dy.contiguous(),
            x.contiguous(),
            weight.contiguous(),
            rstd.contiguous(),
            dx,
            x.shape[-1],
            offset,
            ADD=residual is not None,
            **_tile(x.shape[-1]),
        )


def _tile(num_cols: int) -> dict[str, int]:
    cols = min(triton.next_power_of_2(num_cols), _COLS)
    return {"COLS": cols, "num_warps": max(1, min(8, cols // 512))}
