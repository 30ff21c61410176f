"""The leading singular triplets of a large matrix, the same on every run.

Exact where the matrix is small; else by random projection with power iterations. torch has a
projection too, which draws from the global generator: a start that looks at data would then
change every number that is drawn after it.

Source: Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1.
"""

import torch
from torch import Tensor

__all__ = ["leading_svd"]

_SEED = 42
_NUM_POWER_ITERATIONS = 4
# More directions than are asked for, which keep the last of those exact.
_OVERSAMPLING = 10
# A projection onto more than a third of the smaller side takes as long as the exact way.
_MAX_PROJECTED_SHARE = 3


@torch.no_grad()
def leading_svd(matrix_ND: Tensor, num_triplets: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (N, K), S (K,) falling, Vᵀ (K, D) of `matrix_ND`, in float32.

    K is `num_triplets`, or the smaller side where that is less. The largest entry of every
    right vector is positive.
    """
    matrix = matrix_ND.to(torch.float32)
    side = min(matrix.shape)
    num_triplets = min(num_triplets, side)
    num_projected = num_triplets + _OVERSAMPLING
    if num_projected * _MAX_PROJECTED_SHARE >= side:
        u_NK, s_K, v_KD = torch.linalg.svd(matrix, full_matrices=False)
    else:
        q_NK = _range(matrix, num_projected)
        u_KK, s_K, v_KD = torch.linalg.svd(q_NK.t() @ matrix, full_matrices=False)
        u_NK = q_NK @ u_KK
    u_NK, s_K, v_KD = u_NK[:, :num_triplets], s_K[:num_triplets], v_KD[:num_triplets]
    largest = v_KD.gather(1, v_KD.abs().argmax(dim=1, keepdim=True)).flatten()
    sign_K = torch.where(largest < 0, -1.0, 1.0)
    return u_NK * sign_K, s_K, v_KD * sign_K[:, None]


def _range(matrix_ND: Tensor, num_projected: int) -> Tensor:
    """Orthonormal (N, K) that nearly spans the leading left vectors."""
    generator = torch.Generator().manual_seed(_SEED)
    random = torch.randn(matrix_ND.shape[1], num_projected, generator=generator)
    q_NK = torch.linalg.qr(matrix_ND @ random.to(matrix_ND.device)).Q
    for _ in range(_NUM_POWER_ITERATIONS):
        q_DK = torch.linalg.qr(matrix_ND.t() @ q_NK).Q
        q_NK = torch.linalg.qr(matrix_ND @ q_DK).Q
    return q_NK
