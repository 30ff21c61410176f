"""Cross-entropy in plain PyTorch, in float32."""

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.cross_entropy import (
    CROSS_ENTROPY,
    CROSS_ENTROPY_GRAD_,
    CROSS_ENTROPY_INPUT_GRAD,
    IGNORED,
)

__all__ = [
    "cross_entropy",
    "cross_entropy_grad_",
    "cross_entropy_input_grad",
    "refuse_targets",
]


@CROSS_ENTROPY.backend("default")
def cross_entropy(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """See `ince.ops.cross_entropy`."""
    index = _indices(targets, logits.shape[1])
    return _losses(_capped(logits, softcap), index, targets)


@CROSS_ENTROPY_GRAD_.backend("default")
def cross_entropy_grad_(
    logits: Tensor, targets: Tensor, scale: float, softcap: float, weights: Tensor | None
) -> Tensor:
    """See `ince.ops.cross_entropy_grad_`."""
    index = _indices(targets, logits.shape[1])
    losses = _losses(_capped(logits, softcap), index, targets)
    factors = torch.full_like(losses, scale)
    if weights is not None:
        losses, factors = losses * weights, factors * weights
    logits.copy_(_grad(logits, targets, softcap, factors))
    return losses.sum(dtype=torch.float64).float()


@CROSS_ENTROPY_INPUT_GRAD.backend("default")
def cross_entropy_input_grad(
    logits: Tensor, targets: Tensor, softcap: float, weights: Tensor
) -> Tensor:
    """The gradient of losses that are summed with `weights`, by the logits."""
    return _grad(logits, targets, softcap, weights).to(logits.dtype).contiguous()


def refuse_targets(targets: Tensor, num_classes: int) -> None:
    """Raise `InputError` when a target on the CPU is none of the classes, nor ignored."""
    is_wrong = ((targets < 0) | (targets >= num_classes)) & (targets != IGNORED)
    if not bool(is_wrong.any()):
        return
    row = int(is_wrong.nonzero()[0])
    raise InputError(
        f"{int(is_wrong.sum())} of {targets.numel()} targets are no entry of the vocabulary",
        where=f"targets[{row}]",
        got=int(targets[row]),
        expected=f"0 to {num_classes - 1}, or {IGNORED} to be ignored",
    )


def _indices(targets: Tensor, num_classes: int) -> Tensor:
    """Targets as columns that exist."""
    if targets.device.type == "cpu":
        refuse_targets(targets, num_classes)
    return targets.clamp(0, max(num_classes - 1, 0)).unsqueeze(1)


def _capped(logits: Tensor, softcap: float) -> Tensor:
    wide = logits.float()
    return torch.tanh(wide / softcap) * softcap if softcap else wide


def _losses(z: Tensor, index: Tensor, targets: Tensor) -> Tensor:
    if z.shape[1] == 0:
        return z.new_zeros(z.shape[0])
    losses = torch.logsumexp(z, dim=1) - z.gather(1, index).squeeze(1)
    # On a GPU nothing was refused.
    losses = losses.where((targets >= 0) & (targets < z.shape[1]), torch.nan)
    return losses.where(targets != IGNORED, 0.0)


def _grad(logits: Tensor, targets: Tensor, softcap: float, factors: Tensor) -> Tensor:
    """In float32, each row times its factor."""
    z = _capped(logits, softcap)
    grad = torch.softmax(z, dim=1)
    if grad.shape[1]:
        index = _indices(targets, grad.shape[1])
        grad = grad.scatter_add(1, index, grad.new_full(index.shape, -1.0))
    grad = grad * factors.unsqueeze(1)
    if softcap:
        grad = grad * (1 - (z / softcap).square())
    return grad.where((targets != IGNORED).unsqueeze(1), 0.0)
