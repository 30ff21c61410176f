"""LoRA-GA: A and B begin along the gradient that full fine-tuning would follow first.

With G ≈ U S Vᵀ the gradient of W, the first step of s · B A comes nearest to a step along G
when A spans R of the leading 2R right vectors and B the other left ones. Only directions enter:
the size of G depends on the batch and the loss, and the authors leave it out. (PEFT multiplies
B by S and scales B alone, which makes the start as small as the gradient is.)

``s · B₀A₀`` is not zero, so it goes into `Start.base_change`.

Shapes: G (O, D), U (O, Q), V (Q, D), A (R, D), B (O, R).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.lora.starts.leading import leading_svd
from ince.lora.starts.start import Start, decomposable

__all__ = ["DIRECTIONS", "SCALES", "Direction", "Gradient", "Scale", "lora_ga"]

Direction = Literal["ArBr", "A2rBr", "ArB2r", "random"]
Scale = Literal["stable", "weight_svd", "gd_scale", "unit"]

DIRECTIONS: tuple[Direction, ...] = ("ArBr", "A2rBr", "ArB2r", "random")
SCALES: tuple[Scale, ...] = ("stable", "weight_svd", "gd_scale", "unit")


@dataclass(frozen=True, slots=True)
class Gradient:
    """The leading part of a gradient, G ≈ U S Vᵀ.

    Attributes:
        u_OQ: orthonormal columns. s_Q: falling. v_QD: orthonormal rows.
    """

    u_OQ: Tensor
    s_Q: Tensor
    v_QD: Tensor

    @classmethod
    def of(cls, gradient_OD: Tensor, num_kept: int) -> "Gradient":
        """The leading `num_kept` directions of a gradient."""
        return cls(*leading_svd(gradient_OD, num_kept))

    def plus(self, gradient_OD: Tensor) -> "Gradient":
        """The leading part of the sum with another gradient, as many directions."""
        total = torch.addmm(gradient_OD.float(), self.u_OQ * self.s_Q, self.v_QD)
        return Gradient.of(total, self.s_Q.numel())


@torch.no_grad()
def lora_ga(
    gradient: Gradient,
    weight_OD: Tensor,
    r: int,
    s: float,
    *,
    direction: Direction = "ArB2r",
    scale: Scale = "stable",
    stable_gamma: float = 16,
    name: str = "weight",
) -> Start:
    """A and B from the leading 2R directions of the gradient.

    Args:
        gradient: of W; at least 2R directions of it.
        weight_OD: W, of any float dtype; its size counts, and for "weight_svd" its values.
        r: rank. s: scale of the update.
        direction: which of the directions 0 … 2R-1 A and B take. "ArB2r": A the first R, B the
            rest; "A2rBr": the other way round; "ArBr": B the even ones, A the odd;
            "random": both the same R, drawn from torch's global generator.
        scale: a factor on both. "stable": O^¼ / √γ, so that outputs and gradients keep their
            size; "weight_svd": the mean of √(singular values of W / s); "gd_scale": 1/s;
            "unit": none.
        stable_gamma: γ.
        name: of the weight, for messages.

    Raises:
        AdapterError: see `decomposable`, for 2R directions; or the gradient is zero.

    Source: LoRA-GA, arXiv:2407.05000, theorems 3.1 and 3.2, algorithm 1.
    """
    weight = decomposable(weight_OD, 2 * r, method="LoRA-GA", name=name)
    if gradient.s_Q.numel() < 2 * r or not bool(gradient.s_Q[0] > 0):
        raise AdapterError(
            "LoRA-GA takes A and B from twice the rank in directions of the gradient",
            where=name,
            got=f"a gradient of {int((gradient.s_Q > 0).sum())} directions",
            expected=f"{2 * r} for rank {r}",
            do="gather the gradient with this config; leave out layers that get none",
        )
    for_a, for_b = _indices(direction, r)
    factor = _factor(weight, r, s, scale, stable_gamma)
    a_RD = (gradient.v_QD[for_a] * factor).contiguous()
    b_OR = (gradient.u_OQ[:, for_b] * factor).contiguous()
    return Start(a_RD, b_OR, base_change=(a_RD.clone(), b_OR.clone()))


def _indices(direction: Direction, r: int) -> tuple[Tensor, Tensor]:
    """Directions that A takes, and that B takes."""
    every = torch.arange(2 * r)
    if direction == "ArBr":
        return every[1::2], every[0::2]
    if direction == "A2rBr":
        return every[r:], every[:r]
    if direction == "ArB2r":
        return every[:r], every[r:]
    drawn = torch.randperm(2 * r)[:r]
    return drawn, drawn


def _factor(
    weight_OD: Tensor, r: int, s: float, scale: Scale, stable_gamma: float
) -> float | Tensor:
    if scale == "stable":
        return weight_OD.shape[0] ** 0.25 / stable_gamma**0.5
    if scale == "weight_svd":
        _, strengths, _ = leading_svd(weight_OD, r)
        return (strengths / s).sqrt().mean()
    return 1 / s if scale == "gd_scale" else 1.0
