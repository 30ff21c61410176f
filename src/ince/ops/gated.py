"""Gated activations, SwiGLU and GeGLU (arXiv:2002.05202): the declaration of three operators.

The backward one works in place: a training step keeps gate and up and nothing else, and gets
the gradients of both, and the product that the next layer's weight gradient needs, in the memory
of what it had.

Shapes: all tensors (..., N) alike.
"""

from typing import Any

import torch
from torch import Tensor

from ince.errors import InputError, did_you_mean
from ince.ops.checks import check_float_rows, check_same_device, check_shape
from ince.ops.operator import NO_SECOND_GRADIENT, Autograd, Operator

__all__ = [
    "ACTIVATIONS",
    "GATED_ACTIVATION",
    "GATED_ACTIVATION_BACKWARD_",
    "GATED_ACTIVATION_GRAD",
    "gated_activation",
    "gated_activation_backward_",
]

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
"""Kinds of activation: ``x σ(x)``, GELU by tanh, and GELU by the normal distribution."""


def gated_activation(gate: Tensor, up: Tensor, kind: str = "silu") -> Tensor:
    """``h = act(gate) * up``, in float32 and rounded once.

    Args:
        gate, up: (..., N) float32, bfloat16 or float16.
        kind: one of `ACTIVATIONS`.

    Returns:
        (..., N) in their type.

    Raises:
        InputError: shapes, types or devices differ; no such kind.
    """
    result: Tensor = torch.ops.ince.gated_activation.default(gate, up, kind)
    return result


def gated_activation_backward_(dh: Tensor, gate: Tensor, up: Tensor, kind: str = "silu") -> None:
    """The gradients of `gated_activation`, in place of its arguments.

    On return `gate` holds ``dh * up * act'(gate)``, `up` holds ``dh * act(gate)``, and `dh`
    holds the product of the forward, ``act(gate) * up``, equal to it to the bit. Each is computed
    in float32 from the numbers as they were, and rounded once.

    Args:
        dh: (..., N), the gradient of h.
        gate, up, kind: as they were in the forward. The three share no memory.

    Raises:
        InputError: shapes, types or devices differ; no such kind; or one of the tensors asks
            for a gradient where gradients are recorded.
    """
    torch.ops.ince.gated_activation_backward_.default(dh, gate, up, kind)


def _check_forward(gate: Tensor, up: Tensor, kind: str) -> None:
    if kind not in ACTIVATIONS:
        raise InputError(
            "no such gated activation",
            where="kind",
            got=kind,
            expected=", ".join(ACTIVATIONS),
            do=did_you_mean(kind, ACTIVATIONS),
        )
    check_float_rows("gate", gate)
    _check_alike("up", up, gate)


def _check_backward(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> None:
    _check_forward(gate, up, kind)
    _check_alike("dh", dh, gate)


def _check_alike(name: str, tensor: Tensor, gate: Tensor) -> None:
    if tensor.dtype != gate.dtype:
        raise InputError(
            f"{name} and gate are of two types", got=f"{tensor.dtype} and {gate.dtype}"
        )
    check_shape(name, tensor, tuple(gate.shape), "the shape of gate")
    check_same_device(**{"gate": gate, name: tensor})


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gate, up, ctx.kind = inputs
    ctx.save_for_backward(gate, up)


def _grad(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.ince.gated_activation_grad.default(dh, *ctx.saved_tensors, ctx.kind)
    return *grads, None


GATED_ACTIVATION = Operator(
    "gated_activation",
    "(Tensor gate, Tensor up, str kind) -> Tensor",
    _check_forward,
    Autograd(_keep, _grad),
)

GATED_ACTIVATION_BACKWARD_ = Operator(
    "gated_activation_backward_",
    "(Tensor(a!) dh, Tensor(b!) gate, Tensor(c!) up, str kind) -> ()",
    _check_backward,
)

GATED_ACTIVATION_GRAD = Operator(
    "gated_activation_grad",
    "(Tensor dh, Tensor gate, Tensor up, str kind) -> (Tensor, Tensor)",
    _check_backward,
    NO_SECOND_GRADIENT,
)


@GATED_ACTIVATION.fake
def _shape(gate: Tensor, up: Tensor, kind: str) -> Tensor:  # noqa: ARG001  the operator's signature
    return gate.new_empty(gate.shape)


@GATED_ACTIVATION_GRAD.fake
def _shapes(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return gate.new_empty(gate.shape), up.new_empty(up.shape)
