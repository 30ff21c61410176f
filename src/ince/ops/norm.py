"""Root mean square normalization (arXiv:1910.07467): the declaration of three operators.

One norm serves all models that transformers knows. Llama rounds the normalized input to its
type before it multiplies by the weight; Gemma adds one to the weight and multiplies in float32.
What is kept for a backward pass is the input, and one number a row.

Shapes: x, y, dy, dx (..., N), weight (N,), rstd (...).
"""

from typing import Any

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device, check_shape
from ince.ops.operator import NO_SECOND_GRADIENT, Autograd, Operator

__all__ = [
    "RMS_NORM",
    "RMS_NORM_ADD_INPUT_GRAD_",
    "RMS_NORM_INPUT_GRAD",
    "multiplier",
    "rms_norm",
    "rms_norm_add_input_grad_",
    "rms_norm_input_grad",
    "rounds_before_weight",
    "type_of_result",
]


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    weight_in_float32: bool = False,
) -> tuple[Tensor, Tensor]:
    """``y = x / sqrt(mean(x²) + eps) * (offset + weight)`` over the last axis.

    Args:
        x: (..., N) float32, bfloat16 or float16.
        weight: (N,) in the type of `x`, or in float32.
        eps: added to the mean of squares.
        offset: added to the weight in float32. Gemma's is 1.
        weight_in_float32: multiply by the weight before anything is rounded, as Gemma and OLMo 2
            do; with an offset it is so in any case. Llama and most others round the
            normalized input to the type of `x` first.

    Returns:
        y: (..., N) in the type of `x`; as in transformers' Llama, in float32 where the weight
            is and is multiplied last.
        rstd: (...) float32, ``1 / sqrt(mean(x²) + eps)``; it has no gradient.

    Raises:
        InputError: shapes, types or devices do not fit.

    Arithmetic is float32. Gradients go to `x` and, where it asks for one, to `weight`.
    """
    y, rstd = torch.ops.ince.rms_norm.default(x, weight, eps, offset, weight_in_float32)
    return y, rstd


def rms_norm_input_grad(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float = 0.0
) -> Tensor:
    """The gradient of `rms_norm` by its input, in float32 and rounded once.

    With ``g = dy * (offset + weight)`` and ``n = x * rstd``: ``dx = rstd * (g - n * mean(g * n))``.

    Args:
        dy: (..., N), gradient of y, in the type of `x` or in float32.
        x, weight, offset: as they were in the forward.
        rstd: (...) float32, what the forward returned.

    Returns:
        (..., N) in the type of `x`.
    """
    result: Tensor = torch.ops.ince.rms_norm_input_grad.default(dy, x, weight, rstd, offset)
    return result


def rms_norm_add_input_grad_(
    residual: Tensor, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float = 0.0
) -> Tensor:
    """Add the gradient of `rms_norm` by its input to `residual`, in place, rounded once.

    Where a stream is normalized for a branch and also goes on beside it, its gradient is such a
    sum; this spares writing and reading one of the two.

    Args:
        residual: (..., N) in the type of `x`; written into, and returned.
        dy, x, weight, rstd, offset: as in `rms_norm_input_grad`.
    """
    torch.ops.ince.rms_norm_add_input_grad_.default(residual, dy, x, weight, rstd, offset)
    return residual


def multiplier(weight: Tensor, offset: float) -> Tensor:
    """What a row is multiplied by: (N,) float32, without gaps."""
    wide = weight.float()
    return (wide + offset if offset else wide).contiguous()


def rounds_before_weight(offset: float, weight_in_float32: bool) -> bool:
    """Whether the normalized input is rounded before it is multiplied by the weight."""
    return offset == 0 and not weight_in_float32


def type_of_result(
    x: Tensor, weight: Tensor, offset: float, weight_in_float32: bool
) -> torch.dtype:
    """The dtype of y."""
    return weight.dtype if rounds_before_weight(offset, weight_in_float32) else x.dtype


def _check_input(x: Tensor, weight: Tensor) -> None:
    check_float_rows("x", x)
    check_shape("weight", weight, (x.shape[-1],), "a number for each column of x")
    if weight.dtype not in (x.dtype, torch.float32):
        raise InputError(
            "the weight has a type of its own",
            where="weight",
            got=f"{weight.dtype}, x is {x.dtype}",
            expected=f"{x.dtype} or float32",
        )
    check_same_device(x=x, weight=weight)


def _check_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,  # noqa: ARG001  the operator's signature
    offset: float,  # noqa: ARG001
    weight_in_float32: bool,  # noqa: ARG001
) -> None:
    _check_input(x, weight)


def _check_input_grad(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: float,  # noqa: ARG001  the operator's signature
) -> None:
    _check_input(x, weight)
    check_shape("dy", dy, tuple(x.shape), "the shape of x")
    check_shape("rstd", rstd, tuple(x.shape[:-1]), "a number for each row of x")
    for name, tensor, allowed in (
        ("dy", dy, (x.dtype, torch.float32)),
        ("rstd", rstd, (torch.float32,)),
    ):
        if tensor.dtype not in allowed:
            raise InputError(
                f"{name} has the wrong type",
                where=name,
                got=str(tensor.dtype),
                expected=" or ".join(map(str, allowed)),
            )
    check_same_device(x=x, dy=dy, rstd=rstd)


def _check_add_input_grad(
    residual: Tensor, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> None:
    _check_input_grad(dy, x, weight, rstd, offset)
    check_shape("residual", residual, tuple(x.shape), "the shape of x")
    if residual.dtype != x.dtype:
        raise InputError(
            "residual has the wrong type",
            where="residual",
            got=str(residual.dtype),
            expected=str(x.dtype),
        )
    check_same_device(x=x, residual=residual)


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _eps, offset, weight_in_float32 = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])
    ctx.rest = (offset, weight_in_float32)


def _grad_of_norm(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, rstd = ctx.saved_tensors
    offset, weight_in_float32 = ctx.rest
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.ince.rms_norm_input_grad.default(dy, x, weight, rstd, offset)
    if ctx.needs_input_grad[1]:
        normalized = x.float() * rstd.unsqueeze(-1)
        if rounds_before_weight(offset, weight_in_float32):
            normalized = normalized.to(x.dtype).float()
        grads = (dy.float() * normalized).reshape(-1, x.shape[-1])
        grad_weight = grads.sum(0).to(weight.dtype)
    return grad_x, grad_weight, None, None, None


RMS_NORM = Operator(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps, float offset, bool weight_in_float32)"
    " -> (Tensor y, Tensor rstd)",
    _check_norm,
    Autograd(_keep_input, _grad_of_norm),
)

RMS_NORM_INPUT_GRAD = Operator(
    "rms_norm_input_grad",
    "(Tensor dy, Tensor x, Tensor weight, Tensor rstd, float offset) -> Tensor",
    _check_input_grad,
    NO_SECOND_GRADIENT,
)

RMS_NORM_ADD_INPUT_GRAD_ = Operator(
    "rms_norm_add_input_grad_",
    "(Tensor(a!) residual, Tensor dy, Tensor x, Tensor weight, Tensor rstd, float offset) -> ()",
    _check_add_input_grad,
)


@RMS_NORM.fake
def _norm_shapes(
    x: Tensor,
    weight: Tensor,
    eps: float,  # noqa: ARG001  the operator's signature
    offset: float,
    weight_in_float32: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=type_of_result(x, weight, offset, weight_in_float32))
    return y, x.new_empty(x.shape[:-1], dtype=torch.float32)


@RMS_NORM_INPUT_GRAD.fake
def _input_grad_shape(
    dy: Tensor,  # noqa: ARG001  the operator's signature
    x: Tensor,
    weight: Tensor,  # noqa: ARG001
    rstd: Tensor,  # noqa: ARG001
    offset: float,  # noqa: ARG001
) -> Tensor:
    return x.new_empty(x.shape)
