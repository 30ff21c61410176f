"""Products with a weight in four bits: the declaration of three operators.

What is kept for a backward pass are the packed parts, never a weight in floats. A gradient goes
to the input and the bias; the weight is frozen.

Shapes: x (..., in), weight (out, in), result (..., out).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.operator import Autograd, Operator
from ince.ops.packed import FLOAT_DTYPES, check_parts

__all__ = [
    "GEMV_4BIT",
    "LINEAR_4BIT",
    "LINEAR_4BIT_INPUT_GRAD",
    "gemv_4bit",
    "linear_4bit",
]


def linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str = "nf4",
    *,
    nested_absmax: Tensor | None = None,
    nested_offset: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``y = x Wᵀ + b`` with W in four bits.

    Args:
        x: (..., in) float32, bfloat16 or float16.
        packed, absmax, nested_absmax, nested_offset: see `ince.ops.packed`.
        blocksize: weights that share a scale.
        shape: (out, in).
        quant_type: the sixteen values.
        bias: (out,) in the dtype of `x`.

    Returns:
        (..., out) in the dtype of `x`. The reference expands W in that dtype and multiplies;
        other backends differ by the order of sums.

    Raises:
        QuantError: the parts do not fit each other or `x`.
    """
    result: Tensor = torch.ops.ince.linear_4bit.default(
        x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, list(shape), quant_type
    )
    return result


def gemv_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str = "nf4",
    *,
    nested_absmax: Tensor | None = None,
    nested_offset: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear_4bit` of a single row, as in decoding: time is that of reading the packed weight.

    Args:
        x: (..., in) with one row in all; the rest as in `linear_4bit`.
    """
    result: Tensor = torch.ops.ince.gemv_4bit.default(
        x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, list(shape), quant_type
    )
    return result


def _check_product(x: Tensor, packed: Tensor, shape: Sequence[int], width: int, name: str) -> None:
    if x.dtype not in FLOAT_DTYPES:
        raise QuantError(
            "4-bit weights cannot be multiplied with this type",
            where=name,
            got=str(x.dtype),
            expected="float32, bfloat16 or float16",
        )
    if x.ndim == 0 or x.shape[-1] != width:
        raise QuantError(
            "the input does not fit the weight",
            where=name,
            got=f"shape {tuple(x.shape)}",
            expected=f"(..., {width}) for a weight of shape {tuple(shape)}",
        )
    if x.device != packed.device:
        raise QuantError(
            "the input and the packed weight are on two devices",
            got=f"{name} on {x.device}, packed on {packed.device}",
            do="move both to one device",
        )


def _check_matrix(shape: Sequence[int]) -> None:
    if len(shape) != 2:
        raise QuantError(
            "not the shape of a linear layer's weight",
            where="shape",
            got=tuple(shape),
            expected="(out, in)",
        )


def _check_linear(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> None:
    _check_matrix(shape)
    check_parts(packed, absmax, nested_absmax, nested_offset, blocksize, shape, quant_type)
    _check_product(x, packed, shape, shape[1], "x")
    if bias is not None and (tuple(bias.shape) != (shape[0],) or bias.dtype != x.dtype):
        raise QuantError(
            "the bias does not fit the product",
            where="bias",
            got=f"{bias.dtype}, shape {tuple(bias.shape)}",
            expected=f"{x.dtype}, shape ({shape[0]},)",
        )


def _check_gemv(x: Tensor, *rest: Any) -> None:
    _check_linear(x, *rest)
    if x.numel() != x.shape[-1]:
        raise QuantError(
            "more or fewer than one row",
            where="x",
            got=f"shape {tuple(x.shape)}",
            expected="one row",
            do="use linear_4bit",
        )


def _check_input_grad(
    grad: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> None:
    _check_matrix(shape)
    check_parts(packed, absmax, nested_absmax, nested_offset, blocksize, shape, quant_type)
    _check_product(grad, packed, shape, shape[0], "grad")


def _keep_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, *parts, _bias, blocksize, shape, quant_type = inputs
    ctx.save_for_backward(*parts)
    ctx.rest = (blocksize, shape, quant_type)


def _grad_of_linear(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.ince.linear_4bit_input_grad.default(grad, *ctx.saved_tensors, *ctx.rest)
    if ctx.needs_input_grad[5]:
        grad_bias = grad.flatten(0, -2).sum(0) if grad.ndim > 1 else grad
    return grad_x, None, None, None, None, grad_bias, None, None, None


def _keep_packed_of_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, *parts, blocksize, shape, quant_type = inputs
    ctx.save_for_backward(*parts)
    ctx.rest = (blocksize, shape, quant_type)


def _grad_of_input_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Second derivatives: grad ↦ grad W is linear, and its transpose is the layer itself.
    back = torch.ops.ince.linear_4bit.default(grad, *ctx.saved_tensors, None, *ctx.rest)
    return back, None, None, None, None, None, None, None


_PARTS = "Tensor packed, Tensor absmax, Tensor? nested_absmax, Tensor? nested_offset"
_REST = "int blocksize, SymInt[] shape, str quant_type"

LINEAR_4BIT = Operator(
    "linear_4bit",
    f"(Tensor x, {_PARTS}, Tensor? bias, {_REST}) -> Tensor",
    _check_linear,
    Autograd(_keep_packed, _grad_of_linear),
)

GEMV_4BIT = Operator(
    "gemv_4bit",
    f"(Tensor x, {_PARTS}, Tensor? bias, {_REST}) -> Tensor",
    _check_gemv,
    Autograd(_keep_packed, _grad_of_linear),
)

LINEAR_4BIT_INPUT_GRAD = Operator(
    "linear_4bit_input_grad",
    f"(Tensor grad, {_PARTS}, {_REST}) -> Tensor",
    _check_input_grad,
    Autograd(_keep_packed_of_grad, _grad_of_input_grad),
)


@LINEAR_4BIT.fake
@GEMV_4BIT.fake
def _product_shape(
    x: Tensor,
    packed: Tensor,  # noqa: ARG001  the operator's signature
    absmax: Tensor,  # noqa: ARG001
    nested_absmax: Tensor | None,  # noqa: ARG001
    nested_offset: Tensor | None,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    blocksize: int,  # noqa: ARG001
    shape: Sequence[int],
    quant_type: str,  # noqa: ARG001
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


@LINEAR_4BIT_INPUT_GRAD.fake
def _input_grad_shape(
    grad: Tensor,
    packed: Tensor,  # noqa: ARG001  the operator's signature
    absmax: Tensor,  # noqa: ARG001
    nested_absmax: Tensor | None,  # noqa: ARG001
    nested_offset: Tensor | None,  # noqa: ARG001
    blocksize: int,  # noqa: ARG001
    shape: Sequence[int],
    quant_type: str,  # noqa: ARG001
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], shape[1]))
