"""What the declarations of optimizer steps ask of a parameter, its gradient and its state.

A step works on one tensor, of any shape, or on a stretch of one. State in 8 bits is coded in
blocks of 256, so that such a stretch begins at a multiple of 256.
"""

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_same_device, check_shape
from ince.ops.codes import STATE_BLOCKSIZE
from ince.ops.eight_bit import num_blocks
from ince.ops.packed import FLOAT_DTYPES

__all__ = ["check_codes", "check_count", "check_gradient", "check_moments"]


def check_count(step: int) -> None:
    """Raise `InputError` unless `step` counts steps from 1."""
    if step < 1:
        raise InputError("steps are counted from 1", where="step", got=step, expected="1 or more")


def check_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Raise `InputError` unless the two are of one shape, and of types that the kernels know."""
    if parameter.dtype not in FLOAT_DTYPES:
        raise InputError(
            "the kernels do not know this type",
            where="parameter",
            got=str(parameter.dtype),
            expected="float32, bfloat16 or float16",
        )
    if gradient.dtype not in (parameter.dtype, torch.float32):
        raise InputError(
            "the gradient has another type than its parameter",
            where="gradient",
            got=str(gradient.dtype),
            expected=f"{parameter.dtype} or float32",
        )
    check_shape("gradient", gradient, tuple(parameter.shape), "the shape of the parameter")
    check_same_device(parameter=parameter, gradient=gradient)


def check_moments(parameter: Tensor, **moments: Tensor) -> None:
    """Raise `InputError` unless each moment is float32, in the shape of the parameter."""
    for name, moment in moments.items():
        _check_type(name, moment, torch.float32)
        check_shape(name, moment, tuple(parameter.shape), "the shape of the parameter")
    check_same_device(parameter=parameter, **moments)


def check_codes(parameter: Tensor, **parts: tuple[Tensor, Tensor]) -> None:
    """Raise `InputError` unless each pair is the codes of a moment and their scales."""
    blocks = (num_blocks(parameter.numel()),)
    for number, (name, (codes, absmax)) in enumerate(parts.items(), start=1):
        _check_type(name, codes, torch.uint8)
        check_shape(name, codes, tuple(parameter.shape), "the shape of the parameter")
        _check_type(f"absmax{number}", absmax, torch.float32)
        check_shape(f"absmax{number}", absmax, blocks, f"one for {STATE_BLOCKSIZE} codes")
        check_same_device(parameter=parameter, **{name: codes, f"absmax{number}": absmax})


def _check_type(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise InputError(
            f"{name} has the wrong type", where=name, got=str(tensor.dtype), expected=str(dtype)
        )
