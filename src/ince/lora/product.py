"""The product ``y = base(x) + (drop(x) Aᵀ)(s B)ᵀ``: plain, in place, and fused with its gradient.

`lora_reference` is the definition, differentiated by autograd. `lora_frozen` computes the
same when no gradient is asked for. `FusedLora` is for training over a frozen base; against
autograd it saves kernels and memory:

- one side of every product has the rank as its width; B A is never formed;
- the low-rank terms are added inside the matrix product (``addmm``), so that neither y nor
  the gradient of x is written twice;
- it keeps x in its own precision (shared by the layers that read it), the (N, r) product,
  and the rounded factors; never a dequantized weight;
- what only the gradient of a frozen factor would need is not kept: with A frozen, as in
  LoRA-FA (arXiv:2308.03303), no x, and of all activations the (N, r) product alone.

A and B are rounded to the precision of x once per call; activations are never widened.

Shapes: N rows (every leading dimension of x), D in, O out, R rank.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

__all__ = ["FusedLora", "lora_frozen", "lora_reference"]

_ROWS = torch.contiguous_format


def lora_reference(
    x: Tensor, a_RD: Tensor, b_OR: Tensor, base: Callable[[Tensor], Tensor], s: float, p: float
) -> Tensor:
    """The definition, in operations that autograd knows.

    Args:
        x: (..., in) of any float dtype.
        a_RD: (r, in), b_OR: (out, r), of any float dtype.
        base: the frozen layer, (..., in) to (..., out).
        s: scale of the update.
        p: dropout of the update's input; 0 outside training.
    """
    low = F.linear(F.dropout(x, p) if p > 0 else x, a_RD.to(x.dtype))
    return base(x) + F.linear(low, (b_OR * s).to(x.dtype))


def lora_frozen(
    x: Tensor, a_RD: Tensor, b_OR: Tensor, base: Callable[[Tensor], Tensor], s: float
) -> Tensor:
    """`lora_reference` without dropout, adding into the base's output. No gradient flows."""
    with torch.no_grad():
        y = base(x)
        a_DR, sb_RO = _rounded(a_RD, b_OR, s, x.dtype)
        u_NR = x.reshape(-1, x.shape[-1]) @ a_DR
        y.view(-1, y.shape[-1]).addmm_(u_NR, sb_RO)
    return y


def _rounded(a_RD: Tensor, b_OR: Tensor, s: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Aᵀ (in, r) and s Bᵀ (r, out) in `dtype`: the order in which thin products are quickest."""
    a_DR = a_RD.t().to(dtype, memory_format=_ROWS)
    return a_DR, (b_OR.t() * s).to(dtype, memory_format=_ROWS)


class _Saved(FunctionCtx):
    """What `FusedLora` keeps between its passes besides tensors."""

    saved_tensors: tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]
    needs_input_grad: tuple[bool, ...]
    weight: Callable[[], Tensor]
    s: float
    p: float
    factor_dtype: torch.dtype


class FusedLora(torch.autograd.Function):
    """`lora_reference` over a frozen base, with its gradient written out.

    With g the gradient of y, u = drop(x) Aᵀ and v = g (s B):

        dx = g W + undrop(v A),   dA = vᵀ drop(x),   dB = s gᵀ u

    Products accumulate in float32 inside the kernels; dA and dB are handed over in the
    dtype of A and B, float32, and add up in it over accumulated batches.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a_RD: Tensor,
        b_OR: Tensor,
        base: Callable[[Tensor], Tensor],
        weight: Callable[[], Tensor],
        s: float,
        p: float,
    ) -> Tensor:
        """As `lora_reference`; `weight` gives the base's (out, in) in the dtype of x.

        The base must be frozen and compute in the dtype of x.
        """
        saved = cast(_Saved, ctx)
        for_x, for_a, for_b, *_ = saved.needs_input_grad
        x_ND = x.reshape(-1, x.shape[-1])
        y = base(x)
        keep_ND: Tensor | None = None
        if p > 0:
            x_ND, keep_ND = torch.native_dropout(x_ND, p, train=True)
        a_DR, sb_RO = _rounded(a_RD, b_OR, s, x.dtype)
        u_NR = x_ND @ a_DR
        y.view(-1, y.shape[-1]).addmm_(u_NR, sb_RO)
        ctx.save_for_backward(
            x_ND if for_a else None,
            a_DR if for_x else None,
            sb_RO,
            u_NR if for_b else None,
            keep_ND if for_x else None,
        )
        saved.weight, saved.s, saved.p, saved.factor_dtype = weight, s, p, a_RD.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B; None for what was not asked for."""
        saved = cast(_Saved, ctx)
        x_ND, a_DR, sb_RO, u_NR, keep_ND = saved.saved_tensors
        grad = grads[0]
        g_NO = grad.reshape(-1, grad.shape[-1])
        dx = da_RD = db_OR = None
        if a_DR is not None or x_ND is not None:
            v_NR = F.linear(g_NO, sb_RO)
            if a_DR is not None:
                dx_ND = g_NO @ saved.weight()
                if keep_ND is None:
                    dx_ND.addmm_(v_NR, a_DR.t())
                else:
                    # Which inputs A saw is known; those it did not see get nothing through it.
                    through_ND = F.linear(v_NR, a_DR).mul_(keep_ND)
                    dx_ND.add_(through_ND, alpha=1 / (1 - saved.p))
                dx = dx_ND.view(*grad.shape[:-1], dx_ND.shape[-1])
            if x_ND is not None:
                da_RD = (v_NR.t() @ x_ND).to(saved.factor_dtype)
        if u_NR is not None:
            db_RO = u_NR.t() @ g_NO
            db_OR = db_RO.t().to(saved.factor_dtype, memory_format=_ROWS).mul_(saved.s)
        return dx, da_RD, db_OR, None, None, None, None
