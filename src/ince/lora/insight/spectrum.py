"""What singular values say of an update: how many directions it has, and how many carry it.

The values come from the factors (`ince.lora.combine.spectrum`); ΔW is never formed. All
arithmetic is float64: an adapter is small, and differences of near-equal subspaces are what
one looks for.

Shapes: O outputs, D fan-in, R rank, K = min(O, D, R).
"""

import torch
from torch import Tensor

from ince.lora.combine.spectrum import ThinSvd, thin_svd
from ince.lora.factors import Factors

__all__ = ["energy_rank", "factor_svd", "frobenius_inner", "numerical_rank", "stable_rank"]

# Share of the total that rounding of a sum may cost: an energy of exactly 90% is reached.
_ROUNDING = 1e-12


def factor_svd(factors: Factors) -> ThinSvd:
    """The singular value decomposition of ``s · B A``; of rank 0, an empty one."""
    if factors.a_RD.numel() == 0 or factors.b_OR.numel() == 0:
        out, fan_in = factors.b_OR.shape[0], factors.a_RD.shape[1]
        empty = torch.zeros(0, dtype=torch.float64)
        return ThinSvd(empty.new_zeros(out, 0), empty, empty.new_zeros(0, fan_in))
    return thin_svd(factors.a_RD, factors.b_OR, factors.s)


def numerical_rank(sigma_K: Tensor) -> int:
    """How many singular values are more than rounding beside the greatest.

    Factors are kept in float32 at most: what lies further below was not written by training.
    """
    if sigma_K.numel() == 0:
        return 0
    floor = float(sigma_K[0]) * torch.finfo(torch.float32).eps
    return int((sigma_K > floor).sum()) if floor > 0 else 0


def energy_rank(sigma_K: Tensor, share: float) -> int:
    """The least k whose first k singular values hold `share` of the energy Σ σ²; 0 of nothing.

    Args:
        sigma_K: greatest first.
        share: between 0 and 1, such as 0.9.
    """
    energy = sigma_K.double().square()
    total = float(energy.sum())
    if total == 0.0:
        return 0
    reached = energy.cumsum(0) >= share * total * (1 - _ROUNDING)
    return min(int((~reached).sum()) + 1, sigma_K.numel())


def stable_rank(sigma_K: Tensor) -> float:
    """``‖ΔW‖²_F / ‖ΔW‖²₂``: 1 when one direction has all, K when all are equal; 0 of nothing."""
    if sigma_K.numel() == 0 or float(sigma_K[0]) == 0.0:
        return 0.0
    scaled = sigma_K.double() / sigma_K[0].double()
    return float(scaled.square().sum())


def frobenius_inner(one: Factors, other: Factors) -> float:
    """``⟨ΔW₁, ΔW₂⟩``, the sum of products of entries, of two updates of one shape.

    As ``s₁ s₂ · tr(A₁ᵀ B₁ᵀ B₂ A₂)``: matrices of the ranks' size are all it needs.
    """
    outputs = one.b_OR.detach().double().t() @ other.b_OR.detach().double()
    inputs = one.a_RD.detach().double() @ other.a_RD.detach().double().t()
    return one.s * other.s * float((outputs * inputs).sum())
