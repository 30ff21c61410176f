"""An update beside the weight that it changes: its size, and whether it says something new.

    relative norm           ‖ΔW‖_F / ‖W‖_F
    amplification factor    ‖ΔW‖_F / ‖Uᵀ W V‖_F   of arXiv:2106.09685, section 7.3
    cosine                  ⟨ΔW, W⟩ / (‖ΔW‖_F ‖W‖_F)

U and V are the directions of ΔW. A large amplification factor means that the update is strong
where the base is weak. Directions drawn at random have one too, which is said beside it: k of
them catch ``‖W‖_F · k / √(O D)`` of W on average.

Weights are read in blocks of rows, in the precision of float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ince.lora.combine.spectrum import ThinSvd
from ince.lora.factors import Factors
from ince.lora.insight.spectrum import numerical_rank

__all__ = ["BesideBase", "beside_base", "magnitude_gain"]

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class BesideBase:
    """One layer's update beside its weight W.

    Attributes:
        weight_norm: ‖W‖_F.
        relative_norm: ‖ΔW‖_F / ‖W‖_F.
        amplification: None of an update of zero, or where W has nothing in its directions.
        random_amplification: of as many directions drawn at random.
        cosine: between ΔW and W; None where either is zero.
    """

    weight_norm: float
    relative_norm: float | None
    amplification: float | None
    random_amplification: float | None
    cosine: float | None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "weight_norm": self.weight_norm,
            "relative_norm": self.relative_norm,
            "amplification": self.amplification,
            "random_amplification": self.random_amplification,
            "cosine": self.cosine,
        }


def _blocks(stored: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, stored.shape[0], _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        yield rows, stored[rows].float()


@torch.no_grad()
def beside_base(svd: ThinSvd, stored: Tensor, *, is_swapped: bool = False) -> BesideBase:
    """Compare an update with its weight.

    Args:
        svd: of ΔW, (O, D).
        stored: W (O, D), or (D, O) where `is_swapped`; any float dtype.
        is_swapped: see `stored`.
    """
    k = numerical_rank(svd.sigma_K)
    u, v = svd.u_OK[:, :k].float(), svd.v_KD[:k].mT.float()
    rows, columns = (v, u) if is_swapped else (u, v)
    energy, core = 0.0, torch.zeros(k, k, dtype=torch.float64)
    for block, weight in _blocks(stored):
        energy += float(weight.double().square().sum())
        core += (rows[block].mT @ (weight @ columns)).double()
    weight_norm, update_norm = math.sqrt(energy), float(svd.sigma_K.norm())
    inner = float((core.diagonal() * svd.sigma_K[:k]).sum())
    caught = float(core.norm())
    num_out, num_in = svd.u_OK.shape[0], svd.v_KD.shape[1]
    by_chance = weight_norm * k / math.sqrt(num_out * num_in)
    return BesideBase(
        weight_norm=weight_norm,
        relative_norm=_ratio(update_norm, weight_norm),
        amplification=_ratio(update_norm, caught) if update_norm else None,
        random_amplification=_ratio(update_norm, by_chance) if update_norm else None,
        cosine=_ratio(inner, update_norm * weight_norm),
    )


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None


@torch.no_grad()
def magnitude_gain(magnitude_O: Tensor, factors: Factors, weight_OD: Tensor) -> Tensor:
    """DoRA's gain ``m / ‖W + s · B A‖`` of each output, (O,) float32.

    Args:
        magnitude_O: m.
        factors: of the update.
        weight_OD: W as it is stored, (O, D).

    Source: arXiv:2402.09353, equation 5.
    """
    norms: list[Tensor] = []
    for rows, weight in _blocks(weight_OD):
        b = factors.b_OR[rows].float() * factors.s
        norms.append(torch.linalg.vector_norm(weight.addmm(b, factors.a_RD.float()), dim=1))
    return magnitude_O.float() / torch.cat(norms)
