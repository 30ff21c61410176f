"""Products of a few rows with a dense weight on the CPU, as both lie in memory."""

import struct

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import NO_MEMORY, active
from ince.ops.cpu.tables import DTYPES
from ince.ops.dense import DENSE_LINEAR, dense_linear_shortcut

__all__ = ["dense_linear"]

# `ince::DenseArgs` of kernels/serving.h.
_ARGUMENTS = struct.Struct("@11q").pack


def _call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The product; None where the library cannot take these tensors."""
    library = active()
    num_outputs, num_inputs = weight.shape
    weight_stride, weight_step = weight.stride()
    if library is None or weight_step != 1 or weight.is_neg() or x.is_neg() or num_inputs == 0:
        return None
    if bias is not None and (not bias.is_contiguous() or bias.is_neg()):
        return None
    rows = x.reshape(-1, num_inputs)
    x_stride, x_step = rows.stride()
    if x_step != 1:
        return None
    y = x.new_empty(rows.shape[0], num_outputs)
    status = library.dense(
        _ARGUMENTS(
            y.data_ptr(),
            rows.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            num_outputs,
            x_stride,
            weight_stride,
            DTYPES[x.dtype],
            rows.shape[0],
            num_inputs,
            num_outputs,
        ),
        torch.get_num_threads(),
    )
    if status == NO_MEMORY:
        raise MemoryError("there is no memory for a product")
    return y.view(*x.shape[:-1], num_outputs)


@DENSE_LINEAR.backend("cpu")
def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `ince.ops.dense_linear`."""
    found = _call(x, weight, bias)
    return reference.dense_linear(x, weight, bias) if found is None else found


@dense_linear_shortcut
def _without_dispatch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The product; None for everything unusual, which is left to the operator."""
    if torch.is_grad_enabled() or not (x.is_cpu and weight.is_cpu):
        return None
    if x.dtype not in DTYPES or weight.dtype != x.dtype or weight.ndim != 2 or x.ndim == 0:
        return None
    if x.shape[-1] != weight.shape[1]:
        return None
    if bias is not None and not (
        bias.is_cpu and bias.dtype == x.dtype and bias.shape == weight.shape[:1]
    ):
        return None
    kinds = {type(x), type(weight), type(bias)}
    if not kinds <= {Tensor, torch.nn.Parameter, type(None)}:
        return None
    return _call(x, weight, bias)
