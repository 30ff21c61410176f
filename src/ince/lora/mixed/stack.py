"""`Stack`: the factors of several adapters of a layer in one tensor each; and `StackCache`.

With a token for each request, a step reads every adapter's factors once and multiplies little:
what costs is the number of calls, and the traffic. One batched product over stacked factors
needs two calls for any number of adapters. Stacking copies them, which costs several products; so a
layer keeps its last stack, and decoding many tokens with the same adapters copies nothing.

A layer keeps one stack: the factors of the batch's adapters once more, at the largest rank among
them, in the precision of the activations. For G adapters of rank r that is G · r · (D + O)
values a layer. It is made only for small inputs, follows changes of the parameters
(`ince.lora.mixed.watch` says which), is never saved, copied or counted with the model, and goes
with `StackCache.clear`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ince.lora.factors import Factors
from ince.lora.mixed.routing import Routing
from ince.lora.mixed.watch import Watch

__all__ = ["Stack", "StackCache", "finish_terms"]


@dataclass(frozen=True, slots=True)
class Stack:
    """G adapters of one layer, zeros above their ranks up to R.

    Attributes:
        adapters: their names, in order. ranks: of each.
        a_GDR: Aᵀ. b_GRO: s · Bᵀ. In the dtype of the activations.
        turn_GO: c - 1 of each adapter and 0 for the base, (G + 1, O); None when all are 0.
        shift_GO: what is added in the end, (G + 1, O), see `finish_terms`; None when all 0.
    """

    adapters: tuple[str, ...]
    ranks: tuple[int, ...]
    a_GDR: Tensor
    b_GRO: Tensor
    turn_GO: Tensor | None
    shift_GO: Tensor | None

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        tensors = (self.a_GDR, self.b_GRO, self.turn_GO, self.shift_GO)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    @classmethod
    def of(
        cls,
        adapters: tuple[str, ...],
        factors: Sequence[Factors],
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        over: "Stack | None" = None,
    ) -> Self:
        """Copy the factors of `adapters`, in their order.

        Args:
            adapters: names.
            factors: of each.
            bias: of the layer, (O,).
            dtype: of the activations.
            over: a stack no longer used, whose memory is taken if it fits: pages that are
                fresh from the system cost more than the copy.
        """
        # In inference mode too they shall be tensors that can be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            ranks = tuple([f.a_RD.shape[0] for f in factors])
            num_g, num_r, device = len(factors), max(ranks), factors[0].a_RD.device
            num_d, num_o = factors[0].a_RD.shape[1], factors[0].b_OR.shape[0]
            a_GRD = _room(num_g, num_r, num_d, dtype, device, over and over.a_GDR.transpose(1, 2))
            b_GOR = _room(num_g, num_o, num_r, dtype, device, over and over.b_GRO.transpose(1, 2))
            if min(ranks) < num_r:
                a_GRD.zero_()
                b_GOR.zero_()
            for g, (f, r) in enumerate(zip(factors, ranks, strict=True)):
                a_GRD[g, :r].copy_(f.a_RD)
                b_GOR[g, :, :r].copy_(f.b_OR if f.s == 1 else f.b_OR * f.s)
            ended = _finish(factors, bias, dtype)
            return cls(adapters, ranks, a_GRD.transpose(1, 2), b_GOR.transpose(1, 2), *ended)


def _room(
    num_g: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    old: Tensor | None,
) -> Tensor:
    if (
        old is not None
        and old.dtype == dtype
        and old.device == device
        and old.shape == (num_g, rows, columns)
    ):
        return old
    return torch.empty(num_g, rows, columns, dtype=dtype, device=device)


def finish_terms(f: Factors, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(turn, shift) with which ``y + turn · y + shift`` ends an update; None for what is idle.

    y is the base's output, its own bias b in it, plus s · B A x. With the update's bias β and the
    magnitude c the result is c · (y - b + s β) + b: turn is c - 1 and shift c · s β + (1 - c) · b.
    (In 16 bits c is too coarse a factor for the whole of y, and c - 1 is not.)
    """
    c = None if f.magnitude is None else f.magnitude.detach()
    shift = None if f.bias is None else f.s * f.bias.detach()
    if c is None:
        return None, shift
    if shift is not None:
        shift = c * shift
    if bias is not None:
        own = (1 - c) * bias.detach()
        shift = own if shift is None else shift + own
    return c - 1, shift


def _finish(
    factors: Sequence[Factors], bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    terms = [finish_terms(f, bias) for f in factors]
    num_o, device = factors[0].b_OR.shape[0], factors[0].b_OR.device
    ended: list[Tensor | None] = []
    for values in zip(*terms, strict=True):
        found = None
        if any(value is not None for value in values):
            found = torch.zeros(len(factors) + 1, num_o, dtype=dtype, device=device)
            for row, value in zip(found, values, strict=False):  # the last row is the base's
                if value is not None:
                    row.copy_(value)
        ended.append(found)
    return ended[0], ended[1]


class StackCache:
    """The last `Stack` of a layer, for as long as it is true."""

    __slots__ = ("_dtype", "_routing", "_stack", "_watch")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Give the memory back; the next small batch stacks anew."""
        self._stack: Stack | None = None
        self._dtype: torch.dtype | None = None
        # Of a stack that is no longer true only the memory is kept, for the next.
        self._watch: Watch | None = None
        self._routing: Routing | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return 0 if self._stack is None else self._stack.num_bytes

    def find(self, adapters: tuple[str, ...], dtype: torch.dtype, routing: Routing) -> Stack | None:
        """The stack of these adapters, in any order, if it is there and true.

        Args:
            adapters: of the batch, those which the layer has.
            dtype: of the activations.
            routing: of the call: within one call less is compared, see `Watch`.
        """
        stack, watch = self._stack, self._watch
        if stack is None or watch is None:
            return None
        mine = stack.adapters
        fits = mine == adapters or (len(mine) == len(adapters) and set(mine) == set(adapters))
        if fits and dtype == self._dtype and watch.is_same(in_same_call=routing is self._routing):
            self._routing = routing
            return stack
        self._watch = self._routing = None
        return None

    def make(
        self,
        layer: nn.Module,
        adapters: tuple[str, ...],
        factors: Sequence[Factors],
        bias: Tensor | None,
        dtype: torch.dtype,
        routing: Routing,
    ) -> Stack | None:
        """Stack `factors` and keep the stack; None when changes would not be noticed.

        Args:
            layer: whose tensors the factors are made of.
            adapters: their names, in order. factors: of each.
            bias: of the layer, (O,).
            dtype: of the activations.
            routing: of the call.
        """
        # Of the base only a magnitude knows, through the norm of its weight and its bias.
        with_base = any(f.magnitude is not None for f in factors)
        watch = Watch(layer, adapters, with_base=with_base)
        if not watch.is_possible:
            return None
        stack = Stack.of(adapters, factors, bias, dtype, over=self._stack)
        self._stack, self._watch, self._dtype, self._routing = stack, watch, dtype, routing
        return stack

    @property
    def requires_grad(self) -> bool:
        """Whether any tensor under the stack is being trained, as of now."""
        return self._watch is not None and self._watch.requires_grad

    def __deepcopy__(self, memo: dict[int, Any]) -> "StackCache":
        return StackCache()  # a copied layer has other parameters

    def __reduce__(self) -> tuple[Callable[[], "StackCache"], tuple[()]]:
        return StackCache, ()
