"""An adapter of lower rank, and how low it may be.

By Eckart and Young (1936) no matrix of rank r is nearer to B A, in the Frobenius or the
spectral norm, than the sum of its r largest singular pairs; what is lost is the tail of the
spectrum. So the error is known before anything is built, and a rank can be chosen by it.

"Energy" is the squared Frobenius norm, Σ σ²: the share kept is the share of it.

This says how near the update stays, not how near the model's answers do: that is measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ince.errors import AdapterError, ConfigError
from ince.lora.combine.spectrum import thin_svd

__all__ = ["Reduced", "Split", "plan_ranks", "rank_for_energy", "reduce_rank"]

Split = Literal["balanced", "peft"]

# Factors are float32: what lies this far under the largest value is their rounding.
_NOISE = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Reduced:
    """The best factors of a lower rank; their scale is the old adapter's."""

    a_RD: Tensor
    """(r, D) float32."""
    b_OR: Tensor
    """(O, r) float32."""
    kept_energy: float
    """Share of ‖B A‖²_F that is left, in [0, 1]; 1 for an update that was zero."""
    error: float
    """‖B A − B' A'‖_F, without the scale."""


def reduce_rank(a_RD: Tensor, b_OR: Tensor, r: int, *, split: Split = "balanced") -> Reduced:
    """The nearest pair of factors of rank r. The (O, D) matrix is not formed.

    Args:
        a_RD: (R, D), b_OR: (O, R), float. The scale stays outside: it is a factor of both
            the old and the new update.
        r: from 1 to min(R, O, D).
        split: of the singular values. "balanced" gives A and B a root each, so that both
            learn at one pace when training goes on; "peft" leaves A orthonormal and gives
            all to B, as PEFT's SVD combinations do.

    Raises:
        AdapterError: not a pair of factors, not finite, or r out of range.
        ConfigError: an unknown split.
    """
    if split not in ("balanced", "peft"):
        raise ConfigError("unknown split", got=split, expected="'balanced' or 'peft'")
    svd = thin_svd(a_RD, b_OR)
    most = svd.sigma_K.numel()
    if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= most:
        raise AdapterError("the adapter has no such lower rank", got=r, expected=f"1 to {most}")
    sigma_R = svd.sigma_K[:r]
    if split == "balanced":
        a, b = sigma_R.sqrt()[:, None] * svd.v_KD[:r], svd.u_OK[:, :r] * sigma_R.sqrt()
    else:
        a, b = svd.v_KD[:r], svd.u_OK[:, :r] * sigma_R
    total, lost = float(svd.sigma_K.square().sum()), float(svd.sigma_K[r:].square().sum())
    return Reduced(
        a.to(torch.float32).contiguous(),
        b.to(torch.float32).contiguous(),
        1.0 - lost / total if total > 0 else 1.0,
        math.sqrt(lost),
    )


def rank_for_energy(singular_values: Tensor, share: float) -> int:
    """The least rank that keeps this share of the energy; at least 1.

    Args:
        singular_values: (K,), not negative, in any order.
        share: in (0, 1]. 1 asks for everything but the rounding of float32.

    Raises:
        AdapterError: not a spectrum.
        ConfigError: share out of range.
    """
    if not 0 < share <= 1:  # false for NaN too
        raise ConfigError("no such share of the energy", got=share, expected="in (0, 1]")
    sigma_K = _checked_spectrum(singular_values)
    energy_K = sigma_K.square()
    energy_K[sigma_K <= _NOISE * sigma_K[0]] = 0.0
    # tail[k]: what is lost when k values are kept. Summed from the small end, nothing of it
    # is swallowed by the large values.
    tail_K = energy_K.flip(0).cumsum(0).flip(0)
    allowed = (1.0 - share) * tail_K[0]
    return max(1, int((tail_K > allowed).sum()))


def plan_ranks(
    spectra: Mapping[str, Tensor], *, rank: int | None = None, energy: float | None = None
) -> dict[str, int]:
    """A rank for each layer: a fixed one, or what its own spectrum needs.

    Args:
        spectra: by layer, its singular values (K,); see `singular_values`.
        rank: at most this in every layer.
        energy: in (0, 1]; as many as keep this share of the layer's energy.

    With both, the energy decides and the rank is the bound. No layer gets more than the K
    values it has.

    Raises:
        ConfigError: neither is given, or one is out of range.
        AdapterError: a spectrum is empty or not finite; or there are no layers.
    """
    if rank is None and energy is None:
        raise ConfigError("no rank and no energy to keep", do="give one, as energy=0.9")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise ConfigError("no such rank", got=rank, expected="a whole number of at least 1")
    if not spectra:
        raise AdapterError("there are no layers whose rank could be reduced")
    planned: dict[str, int] = {}
    for name, sigma in spectra.items():
        most = _checked_spectrum(sigma, where=name).numel()
        wanted = most if energy is None else rank_for_energy(sigma, energy)
        planned[name] = wanted if rank is None else min(wanted, rank)
    return planned


def _checked_spectrum(sigma: Tensor, where: str | None = None) -> Tensor:
    """Float64 on the CPU, descending."""
    if sigma.ndim != 1 or sigma.numel() == 0:
        raise AdapterError(
            "not a spectrum", where=where, got=tuple(sigma.shape), expected="(K,) with K at least 1"
        )
    sigma_K = sigma.detach().cpu().to(torch.float64).sort(descending=True).values
    if not bool(torch.isfinite(sigma_K).all()) or bool(sigma_K[-1] < 0):
        raise AdapterError("a spectrum holds values that are negative or not finite", where=where)
    return sigma_K
