"""A step of Lion (arXiv:2302.06675): the declaration of two operators, with state in 32 or 8 bits.

Arithmetic is float32, and the parameter is rounded once:

    p ← p (1 - lr·weight_decay)
    p ← p - lr · sign(m + (1 - β₁)(g - m))
    m ← m + (1 - β₂)(g - m)

The sign of what is not a number is not a number: it shows in the parameter, where the sign of
`torch.sign`, which is 0, would leave a parameter that never moves again.
"""

import torch
from torch import Tensor

from ince.ops.moments import check_codes, check_gradient, check_moments
from ince.ops.operator import Operator

__all__ = ["LION_8BIT_STEP_", "LION_STEP_", "lion_8bit_step_", "lion_step_"]


def lion_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One step, in place.

    Args:
        parameter: float32, bfloat16 or float16, of any shape; written into.
        gradient: in its shape, and its type or float32.
        exp_avg: m, float32 in its shape; written into.
        lr: how far each weight moves.
        beta1: how much of m is in the direction of this step.
        beta2: how much of m is kept for the next one.
        weight_decay: per step and unit of learning rate.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    torch.ops.ince.lion_step_.default(parameter, gradient, exp_avg, lr, beta1, beta2, weight_decay)


def lion_8bit_step_(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    absmax1: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """`lion_step_` on a moment in 8 bits: it is expanded, moved on, and coded again.

    Args:
        parameter, gradient, lr, beta1, beta2, weight_decay: as of `lion_step_`.
        state1: m, codes of the signed map in the shape of the parameter; written into.
        absmax1: (ceil(n/256),) float32, their scales; written into.

    Raises:
        InputError: shapes, types or devices do not fit.

    A block with a number that is not finite has NaN for its scale from then on.
    """
    torch.ops.ince.lion_8bit_step_.default(
        parameter, gradient, state1, absmax1, lr, beta1, beta2, weight_decay
    )


def _check_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    lr: float,  # noqa: ARG001  the operator's signature
    beta1: float,  # noqa: ARG001
    beta2: float,  # noqa: ARG001
    weight_decay: float,  # noqa: ARG001
) -> None:
    check_gradient(parameter, gradient)
    check_moments(parameter, exp_avg=exp_avg)


def _check_8bit_step(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    absmax1: Tensor,
    lr: float,  # noqa: ARG001  the operator's signature
    beta1: float,  # noqa: ARG001
    beta2: float,  # noqa: ARG001
    weight_decay: float,  # noqa: ARG001
) -> None:
    check_gradient(parameter, gradient)
    check_codes(parameter, state1=(state1, absmax1))


_NUMBERS = "float lr, float beta1, float beta2, float weight_decay"

LION_STEP_ = Operator(
    "lion_step_",
    f"(Tensor(a!) parameter, Tensor gradient, Tensor(b!) exp_avg, {_NUMBERS}) -> ()",
    _check_step,
)

LION_8BIT_STEP_ = Operator(
    "lion_8bit_step_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) state1, Tensor(c!) absmax1,"
    f" {_NUMBERS}) -> ()",
    _check_8bit_step,
)
