"""Optimizer steps in plain PyTorch, in the order of operations of `torch.optim`.

In 8 bits the square root of AdamW is the nearest float32; in 32 bits it is PyTorch's own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ince.ops.adamw import ADAMW_8BIT_STEP_, ADAMW_STEP_
from ince.ops.lion import LION_8BIT_STEP_, LION_STEP_
from ince.ops.reference.eight_bit import coded, dequantize_8bit

__all__ = ["adamw_8bit_step_", "adamw_step_", "lion_8bit_step_", "lion_step_"]


@ADAMW_STEP_.backend("default")
def adamw_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.adamw_step_`."""
    numbers = (step, lr, beta1, beta2, eps, weight_decay)
    _adamw_step_(parameter, gradient, exp_avg, exp_avg_sq, torch.sqrt, *numbers)


def _adamw_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    root: Callable[[Tensor], Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    wide, grad = parameter.float(), gradient.float()
    if weight_decay != 0:
        wide.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (root(exp_avg_sq) / (1 - beta2**step) ** 0.5).add_(eps)
    wide.addcdiv_(exp_avg, denominator, value=-(lr / (1 - beta1**step)))
    if wide is not parameter:
        parameter.copy_(wide)


def _nearest_root(values: Tensor) -> Tensor:
    # On x86, that of PyTorch in float32 is often a unit of the last place off.
    return values.double().sqrt().float()


@ADAMW_8BIT_STEP_.backend("default")
def adamw_8bit_step_(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    state2: Tensor,
    absmax1: Tensor,
    absmax2: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.adamw_8bit_step_`."""
    first = dequantize_8bit(state1, absmax1, True)
    second = dequantize_8bit(state2, absmax2, False)
    numbers = (step, lr, beta1, beta2, eps, weight_decay)
    _adamw_step_(parameter, gradient, first, second, _nearest_root, *numbers)
    _code_into(state1, absmax1, first, signed=True)
    _code_into(state2, absmax2, second, signed=False)


@LION_STEP_.backend("default")
def lion_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.lion_step_`."""
    wide, grad = parameter.float(), gradient.float()
    if weight_decay != 0:
        wide.mul_(1 - lr * weight_decay)
    mixed = torch.lerp(exp_avg, grad, 1 - beta1)
    wide.add_(mixed.sign().where(~mixed.isnan(), mixed), alpha=-lr)
    exp_avg.lerp_(grad, 1 - beta2)
    if wide is not parameter:
        parameter.copy_(wide)


@LION_8BIT_STEP_.backend("default")
def lion_8bit_step_(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    absmax1: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.lion_8bit_step_`."""
    first = dequantize_8bit(state1, absmax1, True)
    lion_step_(parameter, gradient, first, lr, beta1, beta2, weight_decay)
    _code_into(state1, absmax1, first, signed=True)


def _code_into(codes: Tensor, absmax: Tensor, values: Tensor, *, signed: bool) -> None:
    new_codes, new_absmax = coded(values, signed)
    codes.copy_(new_codes)
    absmax.copy_(new_absmax)
