"""Root mean square normalization on the CPU: each row is read from memory once.

Sums of squares and products are taken in float32 pieces of 512 and added in float64, so that a
long row loses nothing.
"""

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import Library, active
from ince.ops.cpu.rows import Rows, rows_of
from ince.ops.cpu.tables import DTYPES
from ince.ops.norm import (
    RMS_NORM,
    RMS_NORM_ADD_INPUT_GRAD_,
    RMS_NORM_INPUT_GRAD,
    multiplier,
    rounds_before_weight,
    type_of_result,
)

__all__ = ["rms_norm", "rms_norm_add_input_grad_", "rms_norm_input_grad"]


@RMS_NORM.backend("cpu")
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float, weight_in_float32: bool
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rms_norm`."""
    library = active()
    if library is None:
        return reference.rms_norm(x, weight, eps, offset, weight_in_float32)
    rows = rows_of(x)
    wide = multiplier(weight, offset)
    y = torch.empty(x.shape, dtype=type_of_result(x, weight, offset, weight_in_float32))
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32)
    library.norm(
        rows.address,
        rows.stride,
        rows.dtype,
        wide.data_ptr(),
        rounds_before_weight(offset, weight_in_float32),
        eps,
        rows.num_rows,
        rows.num_cols,
        y.data_ptr(),
        DTYPES[y.dtype],
        rstd.data_ptr(),
        torch.get_num_threads(),
    )
    return y, rstd


@RMS_NORM_INPUT_GRAD.backend("cpu")
def rms_norm_input_grad(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> Tensor:
    """See `ince.ops.rms_norm_input_grad`."""
    library = active()
    if library is None:
        return reference.rms_norm_input_grad(dy, x, weight, rstd, offset)
    dx = torch.empty(x.shape, dtype=x.dtype)
    _write_input_grad(library, None, dy, x, weight, rstd, offset, rows_of(dx))
    return dx


@RMS_NORM_ADD_INPUT_GRAD_.backend("cpu")
def rms_norm_add_input_grad_(
    residual: Tensor, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> None:
    """See `ince.ops.rms_norm_add_input_grad_`."""
    library = active()
    if library is None:
        reference.rms_norm_add_input_grad_(residual, dy, x, weight, rstd, offset)
        return
    rows = rows_of(residual)
    _write_input_grad(library, rows, dy, x, weight, rstd, offset, rows)
    if rows.tensor is not residual:
        residual.copy_(rows.tensor)


def _write_input_grad(
    library: Library,
    residual: Rows | None,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: float,
    out: Rows,
) -> None:
    dy_rows, x_rows = rows_of(dy), rows_of(x)
    wide, rstd = multiplier(weight, offset), rstd.contiguous()
    library.norm_grad(
        dy_rows.address,
        dy_rows.stride,
        dy_rows.dtype,
        x_rows.address,
        x_rows.stride,
        x_rows.dtype,
        wide.data_ptr(),
        rstd.data_ptr(),
        x_rows.num_rows,
        x_rows.num_cols,
        None if residual is None else residual.address,
        0 if residual is None else residual.stride,
        out.address,
        out.stride,
        torch.get_num_threads(),
    )
