"""Cross-entropy of rows of logits: the declaration of three operators.

The one in place is for training: the logits of a chunk, which nothing else reads, become their
own gradient, so that a chunk's memory is that of its logits, in 16 bits if they are.

Shapes: N rows, V entries of the vocabulary. logits (N, V), targets (N,), losses (N,).
"""

import math
from typing import Any

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device, check_shape
from ince.ops.operator import NO_SECOND_GRADIENT, Autograd, Operator

__all__ = [
    "CROSS_ENTROPY",
    "CROSS_ENTROPY_GRAD_",
    "CROSS_ENTROPY_INPUT_GRAD",
    "IGNORED",
    "cross_entropy",
    "cross_entropy_grad_",
]

IGNORED = -100
"""The target of a row without loss, as everywhere in PyTorch."""


def cross_entropy(logits: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """``logsumexp(z) - z[target]`` for each row, with z the logits.

    Args:
        logits: (N, V) float32, bfloat16 or float16.
        targets: (N,) int64 in [0, V), or `IGNORED`.
        softcap: c of ``z = c tanh(logits / c)``, as in Gemma; 0 for none.

    Returns:
        (N,) float32; 0 where the target is ignored.

    Raises:
        InputError: shapes, types or devices do not fit; or, on a CPU, a target is out of range.
            On a GPU, which would have to be waited for, its loss is NaN.
    """
    result: Tensor = torch.ops.ince.cross_entropy.default(logits, targets, softcap)
    return result


def cross_entropy_grad_(
    logits: Tensor,
    targets: Tensor,
    scale: float = 1.0,
    softcap: float = 0.0,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Replace logits by the gradient of their summed loss, times `scale`.

    A row becomes ``scale * weight * (softmax(z) - onehot(target)) * dz/dlogits``, in float32 and
    rounded once; zeros where the target is ignored.

    Args:
        logits: (N, V) float32, bfloat16 or float16; written into.
        targets, softcap: as in `cross_entropy`.
        scale: of the gradient, not of the loss.
        weights: (N,) float32, of each row's loss and gradient.

    Returns:
        () float32, the sum of the (weighted) losses.

    Raises:
        InputError: as in `cross_entropy`; or `logits` asks for a gradient where gradients are
            recorded.
    """
    result: Tensor = torch.ops.ince.cross_entropy_grad_.default(
        logits, targets, scale, softcap, weights
    )
    return result


def _check(logits: Tensor, targets: Tensor, softcap: float) -> None:
    check_float_rows("logits", logits)
    if logits.ndim != 2:
        raise InputError(
            "logits are a matrix here",
            where="logits",
            got=f"shape {tuple(logits.shape)}",
            expected="(rows, vocabulary)",
            do="flatten the axes before the last",
        )
    check_shape("targets", targets, (logits.shape[0],), "a target for each row of logits")
    if targets.dtype != torch.int64:
        raise InputError(
            "targets are token ids", where="targets", got=str(targets.dtype), expected="torch.int64"
        )
    if not (softcap >= 0 and math.isfinite(softcap)):
        raise InputError(
            "no such cap", where="softcap", got=softcap, expected="a positive number, or 0 for none"
        )
    check_same_device(logits=logits, targets=targets)


def _check_weights(logits: Tensor, weights: Tensor) -> None:
    check_shape("weights", weights, (logits.shape[0],), "a weight for each row of logits")
    if weights.dtype != torch.float32:
        raise InputError(
            "weights have the wrong type",
            where="weights",
            got=str(weights.dtype),
            expected="torch.float32",
        )
    check_same_device(logits=logits, weights=weights)


def _check_grad_(
    logits: Tensor,
    targets: Tensor,
    scale: float,  # noqa: ARG001  the operator's signature
    softcap: float,
    weights: Tensor | None,
) -> None:
    _check(logits, targets, softcap)
    if weights is not None:
        _check_weights(logits, weights)


def _check_input_grad(logits: Tensor, targets: Tensor, softcap: float, weights: Tensor) -> None:
    _check(logits, targets, softcap)
    _check_weights(logits, weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    logits, targets, ctx.softcap = inputs
    ctx.save_for_backward(logits, targets)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets = ctx.saved_tensors
    dlogits = torch.ops.ince.cross_entropy_input_grad.default(logits, targets, ctx.softcap, grad)
    return dlogits, None, None


CROSS_ENTROPY = Operator(
    "cross_entropy",
    "(Tensor logits, Tensor targets, float softcap) -> Tensor",
    _check,
    Autograd(_keep, _grad),
)

CROSS_ENTROPY_GRAD_ = Operator(
    "cross_entropy_grad_",
    "(Tensor(a!) logits, Tensor targets, float scale, float softcap, Tensor? weights) -> Tensor",
    _check_grad_,
)

CROSS_ENTROPY_INPUT_GRAD = Operator(
    "cross_entropy_input_grad",
    "(Tensor logits, Tensor targets, float softcap, Tensor weights) -> Tensor",
    _check_input_grad,
    NO_SECOND_GRADIENT,
)


@CROSS_ENTROPY.fake
def _losses(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:  # noqa: ARG001
    return logits.new_empty((logits.shape[0],), dtype=torch.float32)


@CROSS_ENTROPY_GRAD_.fake
def _sum(
    logits: Tensor,
    targets: Tensor,  # noqa: ARG001  the operator's signature
    scale: float,  # noqa: ARG001
    softcap: float,  # noqa: ARG001
    weights: Tensor | None,  # noqa: ARG001
) -> Tensor:
    return logits.new_empty((), dtype=torch.float32)


@CROSS_ENTROPY_INPUT_GRAD.fake
def _shape(logits: Tensor, targets: Tensor, softcap: float, weights: Tensor) -> Tensor:  # noqa: ARG001
    return logits.new_empty(logits.shape)
