"""Starts that take the main part of the weight into the adapter: PiSSA and OLoRA.

What is taken, ``s · B₀A₀``, goes into `Start.base_change`, so that the model begins as its
base. Both are functions of the weight alone: who has the base can compute them again, but for
PiSSA by random projection.

Shapes: W (O, D), A (R, D), B (O, R).
"""

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.lora.starts.start import Start, decomposable

__all__ = ["olora", "pissa"]


@torch.no_grad()
def pissa(
    weight_OD: Tensor, r: int, s: float, *, num_iterations: int | None = None, name: str = "weight"
) -> Start:
    """The top R singular values and vectors: ``s · B A = U_r S_r V_rᵀ``, √S_r on either side.

    Args:
        weight_OD: W, of any float dtype; read as float32.
        r: rank. s: scale of the update.
        num_iterations: None for the exact decomposition; else that many power iterations of a
            random projection ("pissa_niter_N"), much faster for a large matrix. Draws from
            torch's global generator.
        name: of the weight, for messages.

    Raises:
        AdapterError: see `decomposable`; or the weight is zero, and has no main part.

    Source: PiSSA, arXiv:2404.02948, equations 2 and 3; projection: Halko et al., 0909.4061.
    """
    weight = decomposable(weight_OD, r, method="PiSSA", name=name)
    if not weight.any():
        # A and B would both be zero, and neither would ever get a gradient.
        raise AdapterError(
            "PiSSA finds no main part in a weight that is zero",
            where=name,
            got=f"zeros, {tuple(weight.shape)}",
            do="leave the layer out, or start it with init_lora_weights=True",
        )
    if num_iterations is None:
        u_OK, s_K, v_KD = torch.linalg.svd(weight, full_matrices=False)
    else:
        u_OK, s_K, v_DK = torch.svd_lowrank(weight, r, niter=num_iterations)
        v_KD = v_DK.t()
    root_R = (s_K[:r] / s).sqrt()
    a_RD = root_R[:, None] * v_KD[:r]
    b_OR = u_OK[:, :r] * root_R
    return _taken_from_base(a_RD, b_OR)


@torch.no_grad()
def olora(weight_OD: Tensor, r: int, *, name: str = "weight") -> Start:
    """The first R columns and rows of W = Q R: B orthonormal, A upper trapezoidal.

    The scale of the update does not enter, as in PEFT: what is taken from the base is the
    leading part of W only where s = 1.

    Args:
        weight_OD: W, of any float dtype; read as float32.
        r: rank.
        name: of the weight, for messages.

    Raises:
        AdapterError: see `decomposable`.

    Source: OLoRA, arXiv:2406.01775, algorithm 1.
    """
    weight = decomposable(weight_OD, r, method="OLoRA", name=name)
    q_OK, r_KD = torch.linalg.qr(weight)
    return _taken_from_base(r_KD[:r], q_OK[:, :r])


def _taken_from_base(a_RD: Tensor, b_OR: Tensor) -> Start:
    a_RD, b_OR = a_RD.contiguous(), b_OR.contiguous()
    return Start(a_RD, b_OR, base_change=(a_RD.clone(), b_OR.clone()))
