"""The singular value decomposition of ``s · B A`` from its factors.

The matrix (O, D) is never formed. With B = Q_B R_B and Aᵀ = Q_A R_A (reduced QR),

    s · B A = Q_B (s · R_B R_Aᵀ) Q_Aᵀ

and the small core (at most R × R) has the same singular values; its vectors, turned by Q_B
and Q_A, are those of the matrix. This is exact, not a randomized sketch, and costs
O((O + D) R²) instead of O(O D min(O, D)).

Work is in float64, where the device has it: updates that nearly cancel (a trained factor
beside its negated start) keep their digits, and nothing of float32 size overflows.

Shapes: R rank, D in, O out, K = min(R, O, D) the number of singular values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ince.lora.combine.part import check_factors

__all__ = ["ThinSvd", "left_vectors", "right_vectors", "singular_values", "thin_svd", "widened"]


@dataclass(frozen=True, slots=True)
class ThinSvd:
    """``U diag(σ) V``, float64 (float32 on devices without it).

    Columns of U and rows of V are orthonormal. Where σ is zero they are some completion of
    the basis; the sign of each pair is free.
    """

    u_OK: Tensor
    sigma_K: Tensor
    """Descending, not negative."""
    v_KD: Tensor


def thin_svd(a_RD: Tensor, b_OR: Tensor, s: float = 1.0, *, driver: str | None = None) -> ThinSvd:
    """Decompose ``s · B A`` without forming it.

    Args:
        a_RD: (R, D) float, b_OR: (O, R) float. R may exceed O or D.
        s: scale; a negative one turns the sign of U.
        driver: cuSOLVER's method, on CUDA alone.

    Raises:
        AdapterError: not a pair of factors, or not finite.
    """
    check_factors(a_RD, b_OR, s)
    q_b_OR, r_b = torch.linalg.qr(widened(b_OR))
    q_a_DR, r_a = torch.linalg.qr(widened(a_RD).mT)
    core = (r_b @ r_a.mT) * s
    u, sigma_K, v = torch.linalg.svd(
        core, full_matrices=False, driver=driver if core.is_cuda else None
    )
    return ThinSvd(q_b_OR @ u, sigma_K, v @ q_a_DR.mT)


def singular_values(a_RD: Tensor, b_OR: Tensor, s: float = 1.0) -> Tensor:
    """Singular values of ``s · B A``, descending: (K,) float32.

    Raises:
        AdapterError: not a pair of factors, or not finite.
    """
    check_factors(a_RD, b_OR, s)
    # Only the triangles are needed: the orthogonal sides change no singular value.
    _, r_b = torch.linalg.qr(widened(b_OR), mode="r")
    _, r_a = torch.linalg.qr(widened(a_RD).mT, mode="r")
    return torch.linalg.svdvals((r_b @ r_a.mT) * s).to(torch.float32)


def left_vectors(a_RD: Tensor, b_OR: Tensor) -> Tensor:
    """Left singular vectors of B A as columns, by falling singular value: (O, K) float32.

    Raises:
        AdapterError: not a pair of factors, or not finite.
    """
    return thin_svd(a_RD, b_OR).u_OK.to(torch.float32)


def right_vectors(a_RD: Tensor, b_OR: Tensor) -> Tensor:
    """Right singular vectors of B A as rows, by falling singular value: (K, D) float32.

    With V and V' of two updates, ``‖V[:i] V'[:j]ᵀ‖²_F / min(i, j)`` is the subspace
    similarity φ of the LoRA paper (arXiv:2106.09685, section 7.2).

    Raises:
        AdapterError: not a pair of factors, or not finite.
    """
    return thin_svd(a_RD, b_OR).v_KD.to(torch.float32)


def widened(factor: Tensor) -> Tensor:
    """Float64 where the device has it, else float32; cut off from autograd."""
    dtype = torch.float32 if factor.device.type == "mps" else torch.float64
    return factor.detach().to(dtype)
