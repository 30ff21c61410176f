"""A step of AdamW (arXiv:1711.05101): the declaration of two operators, with state in 32 or 8 bits.

Arithmetic is float32, and the parameter is rounded once:

    p ← p (1 - lr·weight_decay)
    m ← m + (1 - β₁)(g - m)
    v ← β₂ v + (1 - β₂) g²
    p ← p - lr / (1 - β₁ᵗ) · m / (sqrt(v) / sqrt(1 - β₂ᵗ) + eps)

On a CPU, of float32 parameters, this is what `torch.optim.AdamW` does, to the bit. Of parameters
in 16 bits torch keeps the moments in 16 bits too; here they are never rounded so far. With state
in 8 bits the square root is the nearest number, which torch's is not always.
"""

import torch
from torch import Tensor

from ince.ops.moments import check_codes, check_count, check_gradient, check_moments
from ince.ops.operator import Operator

__all__ = [
    "ADAMW_8BIT_STEP_",
    "ADAMW_STEP_",
    "adamw_8bit_step_",
    "adamw_factors",
    "adamw_step_",
]


def adamw_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step, in place.

    Args:
        parameter: float32, bfloat16 or float16, of any shape; written into.
        gradient: in its shape, and its type or float32.
        exp_avg: m, float32 in its shape; written into.
        exp_avg_sq: v, likewise.
        step: t, from 1 on.
        lr, beta1, beta2, eps, weight_decay: as of `torch.optim.AdamW`.

    Raises:
        InputError: shapes, types or devices do not fit, or `step` is below 1.

    What is not finite in a gradient goes into the moments and the parameter, as in torch.
    """
    torch.ops.ince.adamw_step_.default(
        parameter, gradient, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay
    )


def adamw_8bit_step_(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    state2: Tensor,
    absmax1: Tensor,
    absmax2: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """`adamw_step_` on moments in 8 bits: they are expanded, moved on, and coded again.

    Args:
        parameter, gradient, step, lr, beta1, beta2, eps, weight_decay: as of `adamw_step_`.
        state1: m, codes of the signed map in the shape of the parameter; written into.
        state2: v, codes of the unsigned map, likewise.
        absmax1, absmax2: (ceil(n/256),) float32, their scales; written into.

    Raises:
        InputError: as of `adamw_step_`.

    The parameter moves by the moments before they are coded. A block of moments with a number
    that is not finite has NaN for its scale from then on: nothing of it is silently lost.
    """
    torch.ops.ince.adamw_8bit_step_.default(
        parameter, gradient, state1, state2, absmax1, absmax2,
        step, lr, beta1, beta2, eps, weight_decay,
    )  # fmt: skip


def adamw_factors(
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> tuple[float, ...]:
    """What kernels multiply, divide and add by, reckoned in float64 as torch does.

    Returns:
        What is left of the parameter; the gradient's share in the first moment; what is left of
        the second, and the squared gradient's share in it; the root of its correction; eps; and
        how far the parameter moves, negative.
    """
    root = (1 - beta2**step) ** 0.5
    size = -(lr / (1 - beta1**step))
    return 1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, root, eps, size


def _check_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,  # noqa: ARG001  the operator's signature
    beta1: float,  # noqa: ARG001
    beta2: float,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    weight_decay: float,  # noqa: ARG001
) -> None:
    check_gradient(parameter, gradient)
    check_moments(parameter, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    check_count(step)


def _check_8bit_step(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    state2: Tensor,
    absmax1: Tensor,
    absmax2: Tensor,
    step: int,
    lr: float,  # noqa: ARG001  the operator's signature
    beta1: float,  # noqa: ARG001
    beta2: float,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    weight_decay: float,  # noqa: ARG001
) -> None:
    check_gradient(parameter, gradient)
    check_codes(parameter, state1=(state1, absmax1), state2=(state2, absmax2))
    check_count(step)


_NUMBERS = "int step, float lr, float beta1, float beta2, float eps, float weight_decay"

ADAMW_STEP_ = Operator(
    "adamw_step_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq,"
    f" {_NUMBERS}) -> ()",
    _check_step,
)

ADAMW_8BIT_STEP_ = Operator(
    "adamw_8bit_step_",
    "(Tensor(a!) parameter, Tensor gradient, Tensor(b!) state1, Tensor(c!) state2,"
    f" Tensor(d!) absmax1, Tensor(e!) absmax2, {_NUMBERS}) -> ()",
    _check_8bit_step,
)
