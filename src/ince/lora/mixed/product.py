"""The product of a mixed batch: ``y = base(x)``, and for the rows of adapter i ``+ s_i B_i A_i x``.

`mixed_reference` is the definition: autograd knows it, it takes any kind of layer, and drops
inputs in training. The rest is for linear layers when no gradient is asked for. There the base is
one dense product, and the update must not cost a share of it that grows with the number of
adapters. Which way is quickest is a matter of sizes (`ince.lora.mixed.ways`):

- *stacked*: two batched products over all adapters at once, segments padded to the longest. For
  a token or a few for each request, where the number of calls and the traffic are what costs.
- *runs*: neighboring rows of one adapter are a view of x and of y, two products for each, at the
  adapter's true rank; nothing is gathered or copied. For prompts, where each request is a run.
- *sorted*: rows gathered by adapter, two products for each adapter at its true rank, added back.
  For many requests of few tokens over adapters in very unequal shares or ranks.

Shapes: N rows, M of them with an adapter, D in, O out, G adapters, R the largest rank, P rows in
the longest segment.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.lora.factors import Factors
from ince.lora.mixed.routing import RowPlan
from ince.lora.mixed.stack import Stack, finish_terms

__all__ = [
    "Multiplies",
    "add_runs",
    "add_sorted",
    "add_stacked",
    "mixed_reference",
]


class Multiplies(Protocol):
    """What the definition asks of a geometry (`ince.lora.layers.geometry`)."""

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias, (O,)."""
        ...

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """``s · B(A x) + s · bias``, without the base."""
        ...

    def per_output(self, values_O: Tensor) -> Tensor:
        """One value for each output, shaped to multiply the layer's result."""
        ...


def mixed_reference(
    x: Tensor,
    y: Tensor,
    factors: Sequence[Factors],
    plan: RowPlan,
    geometry: Multiplies,
    *,
    base: Callable[[Tensor], Tensor],
    dropout: Sequence[float] | None = None,
) -> Tensor:
    """The definition, run by run, in operations that autograd knows.

    Args:
        x: what the layer takes, its first dimension the plan's N rows.
        y: what the base makes of x; not changed.
        factors: of the plan's adapters, in its order.
        plan: of the rows.
        geometry: how the layer multiplies.
        base: the layer, for adapters with a magnitude and dropout: DoRA sees the base through
            the same dropout.
        dropout: of each adapter's input; none outside training.
    """
    parts: list[Tensor] = []
    for adapter, start, stop in plan.runs:
        x_run, y_run = x[start:stop], y[start:stop]
        if adapter is None:
            parts.append(y_run)
            continue
        f = factors[adapter]
        p = dropout[adapter] if dropout is not None and x.is_floating_point() else 0.0
        seen = F.dropout(x_run, p) if p > 0 else x_run
        update = geometry.update(seen, f)
        y_new = y_run + update
        if f.magnitude is not None:
            turned = (base(seen) if p > 0 else y_run) + update
            if geometry.bias is not None:
                turned = turned - geometry.per_output(geometry.bias)
            y_new = y_new + geometry.per_output(f.magnitude - 1).to(turned.dtype) * turned
        parts.append(y_new.to(y.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def add_stacked(x_ND: Tensor, y_NO: Tensor, stack: Stack, plan: RowPlan) -> None:
    """Add into y what the plan's adapters, those of `stack`, make of x."""
    a_GDR, b_GRO = stack.a_GDR, stack.b_GRO
    num_g, num_p = len(plan.adapters), plan.width
    if plan.is_sorted and num_g == 1:
        y_NO.addmm_(x_ND @ a_GDR[0], b_GRO[0])
    elif plan.is_sorted and plan.is_even:
        x_GPD = x_ND.view(num_g, num_p, -1)
        # Not with `baddbmm_`: it rounds otherwise than the branch below, and which of the two is
        # taken depends on the order in which an earlier batch was stacked.
        y_NO.view(num_g, num_p, -1).add_(torch.bmm(torch.bmm(x_GPD, a_GDR), b_GRO))
    else:
        rows, places, padded, _ = plan.index(x_ND.device)
        x_GPD = x_ND.index_select(0, padded).view(num_g, num_p, -1)
        added = torch.bmm(torch.bmm(x_GPD, a_GDR), b_GRO).view(num_g * num_p, -1)
        y_NO.index_add_(0, rows, added if plan.is_even else added.index_select(0, places))
    if stack.turn_GO is None and stack.shift_GO is None:
        return
    owners = plan.index(x_ND.device).owners
    if stack.turn_GO is not None:
        y_NO.addcmul_(y_NO, stack.turn_GO.index_select(0, owners))
    if stack.shift_GO is not None:
        y_NO.add_(stack.shift_GO.index_select(0, owners))


def add_runs(
    x_ND: Tensor, y_NO: Tensor, factors: Sequence[Factors], plan: RowPlan, bias: Tensor | None
) -> None:
    """As `add_stacked`, run by run, in the precision of x."""
    ready = [_Ready.of(f, bias, x_ND.dtype) for f in factors]
    for adapter, start, stop in plan.runs:
        if adapter is not None:
            ready[adapter].add(x_ND[start:stop], y_NO[start:stop])


def add_sorted(
    x_ND: Tensor, y_NO: Tensor, factors: Sequence[Factors], plan: RowPlan, bias: Tensor | None
) -> None:
    """As `add_stacked`, adapter by adapter, at least in float32.

    16-bit products of a few rows are slow on a CPU, and casting factors costs more than rows.
    """
    rows = plan.index(x_ND.device).rows
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    x_MD = x_ND.index_select(0, rows).to(dtype)
    y_MO = y_NO.index_select(0, rows).to(dtype)
    for (_, start, stop), f in zip(plan.segments, factors, strict=True):
        if start < stop:
            _Ready.of(f, bias, dtype).add(x_MD[start:stop], y_MO[start:stop])
    y_NO.index_copy_(0, rows, y_MO.to(y_NO.dtype))


class _Ready(NamedTuple):
    """Factors in the layout and precision of a product."""

    a_DR: Tensor
    b_RO: Tensor
    s: float
    turn_O: Tensor | None = None
    shift_O: Tensor | None = None

    @classmethod
    def of(cls, f: Factors, bias: Tensor | None, dtype: torch.dtype) -> Self:
        a_DR, b_RO, s = f.a_RD.t().to(dtype), f.b_OR.t(), f.s
        if b_RO.dtype != dtype:
            b_RO, s = (b_RO * s).to(dtype), 1.0  # scaled before it is rounded, as everywhere
        ends = () if f.is_plain else finish_terms(f, bias)
        return cls(a_DR, b_RO, s, *(None if end is None else end.to(dtype) for end in ends))

    def add(self, x_ND: Tensor, y_NO: Tensor) -> None:
        y_NO.addmm_(x_ND @ self.a_DR, self.b_RO, alpha=self.s)
        if self.turn_O is not None:
            y_NO.addcmul_(y_NO, self.turn_O)
        if self.shift_O is not None:
            y_NO.add_(self.shift_O)
