"""What the declarations of operators ask of tensors: types, shapes, devices.

They look at no number, so that they hold for tensors without data too.
"""

from torch import Tensor

from ince.errors import InputError
from ince.ops.packed import FLOAT_DTYPES

__all__ = ["check_float_rows", "check_same_device", "check_shape"]


def check_float_rows(name: str, tensor: Tensor) -> None:
    """Raise `InputError` unless `tensor` holds rows of floats that the kernels know."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise InputError(
            "the kernels do not know this type",
            where=name,
            got=str(tensor.dtype),
            expected="float32, bfloat16 or float16",
        )
    if tensor.ndim == 0:
        raise InputError(
            "a single number has no row", where=name, got="shape ()", expected="(..., N)"
        )


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], why: str) -> None:
    """Raise `InputError` unless `tensor` has the shape that something else calls for."""
    if tuple(tensor.shape) != expected:
        raise InputError(
            f"{name} does not fit",
            where=name,
            got=f"shape {tuple(tensor.shape)}",
            expected=f"{expected}: {why}",
        )


def check_same_device(**tensors: Tensor) -> None:
    """Raise `InputError` unless all tensors are on one device."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise InputError(
                "tensors are on two devices",
                where=name,
                got=f"{first} on {reference.device}, {name} on {tensor.device}",
                do="move both to one device",
            )
