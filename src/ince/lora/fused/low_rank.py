"""The arithmetic of parts that read one input: forward, and what the backward pass needs.

With g the gradients of the parts' outputs, u = drop(x) Aᵀ and v = g (s B):

    y = W x + (s B) u,   dx = Σ g W + undrop(v A),   dA = vᵀ drop(x),   dB = s gᵀ u

Without dropout the A of all parts are one matrix, so that x is read once for all of them, and
so is the gradient of x written. With dropout each part draws its own, in the order of the parts,
as layers that compute by themselves do; kept is which inputs stayed, not a second input.

Shapes: N rows, D in, O out of a part, R rank of a part, S the ranks of all parts together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.lora.fused.part import Part

__all__ = ["Kept", "backward", "factor_gradients", "forward", "input_gradient", "projected"]

_ROWS = torch.contiguous_format


@dataclass(frozen=True, slots=True)
class Kept:
    """What `forward` leaves for `backward`; its tensors are saved by the autograd function.

    Attributes:
        x_ND: the input, None when no A wants a gradient.
        a_SD: the A of the parts that have one, one below the other, rounded; or None.
        u_NS: drop(x) Aᵀ of the same parts, or None.
        sb_RO: s Bᵀ of each part, rounded; None where it has no adapter.
        keep_ND: which inputs of each part were not dropped; None where all stayed.
    """

    x_ND: Tensor | None
    a_SD: Tensor | None
    u_NS: Tensor | None
    sb_RO: tuple[Tensor | None, ...]
    keep_ND: tuple[Tensor | None, ...]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """As `from_tensors` takes them."""
        return (self.x_ND, self.a_SD, self.u_NS, *self.sb_RO, *self.keep_ND)

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor | None]) -> "Kept":
        """Of what `tensors` gave."""
        x_ND, a_SD, u_NS, *rest = tensors
        num_parts = len(rest) // 2
        return cls(x_ND, a_SD, u_NS, tuple(rest[:num_parts]), tuple(rest[num_parts:]))


def forward(x_ND: Tensor, parts: Sequence[Part], *, keeps_input: bool) -> tuple[list[Tensor], Kept]:
    """The outputs of the parts, (N, O) each, and what their gradient needs."""
    adapted = [part for part in parts if part.a_RD is not None]
    a_SD = u_NS = None
    keep_ND: list[Tensor | None] = [None] * len(parts)
    if adapted:
        a_SD = torch.cat([_given(part.a_RD).to(x_ND.dtype) for part in adapted])
        if any(part.p > 0 for part in adapted):
            u_NS, keep_ND = _dropped(x_ND, parts, a_SD)
        else:
            # Thin products are quickest over a matrix whose rows are the inner dimension.
            u_NS = x_ND @ a_SD.t().contiguous()
    outputs: list[Tensor] = []
    factors: list[Tensor | None] = []
    for part, columns in zip(parts, _columns(parts), strict=True):
        y_NO = part.base(x_ND)
        sb_RO = None
        if part.b_OR is not None and u_NS is not None:
            sb_RO = (part.b_OR.t() * part.s).to(x_ND.dtype, memory_format=_ROWS)
            y_NO.addmm_(u_NS[:, columns], sb_RO)
        outputs.append(y_NO)
        factors.append(sb_RO)
    kept = Kept(x_ND if keeps_input else None, a_SD, u_NS, tuple(factors), tuple(keep_ND))
    return outputs, kept


def _dropped(
    x_ND: Tensor, parts: Sequence[Part], a_SD: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    keep_ND: list[Tensor | None] = []
    u_NS = x_ND.new_empty(x_ND.shape[0], a_SD.shape[0])
    for part, columns in zip(parts, _columns(parts), strict=True):
        keep = None
        if part.a_RD is not None:
            seen_ND = x_ND
            if part.p > 0:
                seen_ND, keep = torch.native_dropout(x_ND, part.p, train=True)
            u_NS[:, columns] = F.linear(seen_ND, a_SD[columns])
        keep_ND.append(keep)
    return u_NS, keep_ND


def backward(
    grads: Sequence[Tensor],
    parts: Sequence[Part],
    kept: Kept,
    *,
    wants_x: bool,
    wants: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the input, and of A and B of each part in turn.

    Args:
        grads: of the outputs, (N, O) each.
        parts: as in `forward`.
        kept: what it left.
        wants_x: whether the input's is asked for.
        wants: of A and B of each part in turn, whether theirs are.
    """
    v_NS = projected(grads, parts, kept)
    dx_ND = input_gradient(grads, parts, kept, v_NS) if wants_x else None
    return dx_ND, factor_gradients(grads, parts, kept, v_NS, wants)


def projected(grads: Sequence[Tensor], parts: Sequence[Part], kept: Kept) -> Tensor | None:
    """v = g (s B) of all parts, (N, S); None where no part has an adapter."""
    if kept.u_NS is None:
        return None
    v_NS = torch.empty_like(kept.u_NS)
    for g_NO, sb_RO, columns in zip(grads, kept.sb_RO, _columns(parts), strict=True):
        if sb_RO is not None:
            v_NS[:, columns] = F.linear(g_NO, sb_RO)
    return v_NS


def factor_gradients(
    grads: Sequence[Tensor],
    parts: Sequence[Part],
    kept: Kept,
    v_NS: Tensor | None,
    wants: Sequence[bool],
) -> list[Tensor | None]:
    """Of A and B of each part in turn, in their own type; None where `wants` says so."""
    found: list[Tensor | None] = [None] * len(wants)
    if v_NS is None:
        return found
    u_NS, x_ND = _given(kept.u_NS), kept.x_ND
    da_SD = None
    if x_ND is not None and all(keep is None for keep in kept.keep_ND):
        da_SD = v_NS.t() @ x_ND
    for i, (part, columns) in enumerate(zip(parts, _columns(parts), strict=True)):
        if part.a_RD is None:
            continue
        if wants[2 * i] and x_ND is not None:
            if da_SD is None:
                da_RD = v_NS[:, columns].t() @ _seen(x_ND, kept.keep_ND[i], part.p)
            else:
                da_RD = da_SD[columns]
            found[2 * i] = da_RD.to(part.a_RD.dtype)
        if wants[2 * i + 1]:
            db_RO = u_NS[:, columns].t() @ grads[i]
            db_OR = db_RO.t().to(_given(part.b_OR).dtype, memory_format=_ROWS)
            found[2 * i + 1] = db_OR.mul_(part.s)
    return found


def input_gradient(
    grads: Sequence[Tensor], parts: Sequence[Part], kept: Kept, v_NS: Tensor | None
) -> Tensor:
    """dx, (N, D): one buffer that all parts add to."""
    dx_ND: Tensor | None = None
    for g_NO, part in zip(grads, parts, strict=True):
        weight = part.weight()
        if dx_ND is None:
            dx_ND = g_NO @ weight
        else:
            dx_ND.addmm_(g_NO, weight)
    dx_ND = _given(dx_ND)
    if v_NS is None or kept.a_SD is None:
        return dx_ND
    if all(keep is None for keep in kept.keep_ND):
        return dx_ND.addmm_(v_NS, kept.a_SD)
    for part, keep_ND, columns in zip(parts, kept.keep_ND, _columns(parts), strict=True):
        if part.a_RD is None:
            continue
        through_ND = v_NS[:, columns] @ kept.a_SD[columns]
        if keep_ND is not None:
            # What A did not see gets nothing through it.
            through_ND.mul_(keep_ND).mul_(1 / (1 - part.p))
        dx_ND.add_(through_ND)
    return dx_ND


def _seen(x_ND: Tensor, keep_ND: Tensor | None, p: float) -> Tensor:
    """The input after dropout, once more."""
    return x_ND if keep_ND is None else (x_ND * keep_ND).mul_(1 / (1 - p))


def _columns(parts: Sequence[Part]) -> list[slice]:
    """Where each part's rank lies among all."""
    columns: list[slice] = []
    start = 0
    for part in parts:
        stop = start + (0 if part.a_RD is None else part.a_RD.shape[0])
        columns.append(slice(start, stop))
        start = stop
    return columns


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # a part has both factors, or none
    return tensor
