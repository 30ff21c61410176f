"""Products of a few rows with a dense weight: the declaration of an operator.

A server's step has a row for each running request. What takes time then is reading the weight,
and general products of matrices, made for many rows, take two or three times as long.

Shapes: x (..., in), weight (out, in), result (..., out).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device, check_shape
from ince.ops.operator import NO_SECOND_GRADIENT, Autograd, Operator

__all__ = ["DENSE_LINEAR", "dense_linear", "dense_linear_shortcut"]

_Shortcut = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]
_shortcuts: list[_Shortcut] = []


def dense_linear_shortcut(function: _Shortcut) -> _Shortcut:
    """Register a way past torch.library: it does the work, or nothing and returns None."""
    _shortcuts.append(function)
    return function


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x Wᵀ + b`` without a gradient, as in generation.

    Args:
        x: (..., in) float32, bfloat16 or float16.
        weight: (out, in) in the type of `x`.
        bias: (out,) likewise, or None.

    Returns:
        (..., out) in the type of `x`. Sums are float32 and rounded once; on a CPU a row's result
        does not depend on the rows beside it.

    Raises:
        InputError: types, shapes or devices do not fit, or a tensor asks for a gradient.
    """
    if not torch.compiler.is_compiling():
        for shortcut in _shortcuts:
            found = shortcut(x, weight, bias)
            if found is not None:
                return found
    result: Tensor = torch.ops.ince.dense_linear.default(x, weight, bias)
    return result


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_float_rows("x", x)
    if weight.ndim != 2 or weight.dtype != x.dtype:
        raise InputError(
            "not the weight of a linear layer for this input",
            where="weight",
            got=f"{weight.dtype}, shape {tuple(weight.shape)}",
            expected=f"{x.dtype}, (out, in)",
        )
    if x.shape[-1] != weight.shape[1]:
        raise InputError(
            "the input does not fit the weight",
            where="x",
            got=f"shape {tuple(x.shape)}",
            expected=f"(..., {weight.shape[1]}) for a weight of shape {tuple(weight.shape)}",
        )
    tensors = {"x": x, "weight": weight}
    if bias is not None:
        if bias.dtype != x.dtype:
            raise InputError(
                "the bias is of another type", where="bias", got=bias.dtype, expected=x.dtype
            )
        check_shape("bias", bias, (weight.shape[0],), "a number for each output")
        tensors["bias"] = bias
    check_same_device(**tensors)


def _refuse_recorded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    raise InputError(
        "this product has no gradient",
        where="dense_linear",
        got="a tensor that asks for one",
        do="call it under torch.no_grad(), or use torch.nn.functional.linear",
    )


DENSE_LINEAR = Operator(
    "dense_linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    _check,
    Autograd(_refuse_recorded, NO_SECOND_GRADIENT.backward),
)


@DENSE_LINEAR.fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], weight.shape[0])
