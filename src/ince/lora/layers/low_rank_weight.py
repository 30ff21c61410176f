"""`LowRankWeight`: a parameter and low-rank updates of it, multiplied without being added up.

A module that owns its parameters (experts of a MoE, a router) multiplies with them itself. To
adapt one, it is handed this in the parameter's place: products with it become

    x W + s · (x Aᵀ) Bᵀ

so that no second stack of experts is made, neither of weights nor, in the backward pass, of
gradients; and A has an input that dropout can act on. It stands in for a tensor by torch's
``__torch_function__``: products are known; anything else gets W + s · B A as a tensor. W may
itself be something that stands in for a tensor, such as experts in four bits.

Shapes: W (O, D), or (E, O, D) for E experts; A (r, D), B (O, r), or (E, r, D) and (E, O, r).
A flipped weight is stored as (D, O).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LowRankUpdate", "LowRankWeight"]

# What `grouped_mm` asks of the strides of its operands, in bytes.
_ALIGNMENT_BYTES = 16


class LowRankUpdate(NamedTuple):
    """``s · B A``, both in the weight's dtype, and the dropout p of what A sees."""

    a: Tensor
    b: Tensor
    s: float
    p: float

    def picked(self, index: Any) -> "LowRankUpdate":
        """Of some of the experts."""
        return self._replace(a=self.a[index], b=self.b[index])

    def padded(self) -> "LowRankUpdate":
        """With zeros to a rank that `grouped_mm` takes."""
        multiple = max(1, _ALIGNMENT_BYTES // self.a.element_size())
        missing = -self.a.shape[-2] % multiple
        if not missing:
            return self
        return self._replace(a=F.pad(self.a, (0, 0, 0, missing)), b=F.pad(self.b, (0, missing)))


class LowRankWeight:
    """Stands in for ``W + Σ s · B A``.

    Dropout in training: each row that is multiplied loses features of its own before A, as in
    any LoRA layer. Where W is used in another way than a product the row is not known; there
    the same features of A's input are lost for the whole call. Both are A's input dropped with
    probability p, and right on average.
    """

    def __init__(
        self, weight: Tensor, updates: Sequence[LowRankUpdate], *, flipped: bool = False
    ) -> None:
        self.weight = weight
        self.updates = tuple(updates)
        self.flipped = flipped
        self._dense: Tensor | None = None
        self._by_expert: list[tuple[LowRankUpdate, ...]] | None = None

    # -------------------------------------------------------------------------- as a tensor

    shape = property(lambda self: self.weight.shape)
    dtype = property(lambda self: self.weight.dtype)
    device = property(lambda self: self.weight.device)
    ndim = property(lambda self: self.weight.ndim)

    def size(self, *dims: int) -> Any:
        """As `Tensor.size`."""
        return self.weight.size(*dims)

    def dim(self) -> int:
        """As `Tensor.dim`."""
        return self.weight.ndim

    def dense(self) -> Tensor:
        """``W + Σ s · B A`` as one new tensor, made once; differentiable."""
        if self._dense is None:
            dense = self.weight
            for a, b, s, p in self.updates:
                seen = a * F.dropout(a.new_ones(a.shape[-1]), p) if p > 0 else a
                left, right = (seen.mT, b.mT) if self.flipped else (b, seen)
                add = torch.addmm if dense.ndim == 2 else torch.baddbmm
                dense = add(dense, left, right, alpha=s)
            self._dense = dense
        return self._dense

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dense(), name)

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: Any) -> Any:
        if self.weight.ndim == 3 and _is_number(index):
            expert = int(index)
            if self._by_expert is None:
                # Not one by one: each would add a gradient of the whole stack's size.
                unbound = [zip(u.a.unbind(0), u.b.unbind(0), strict=True) for u in self.updates]
                self._by_expert = [
                    tuple(u._replace(a=a, b=b) for u, (a, b) in zip(self.updates, ab, strict=True))
                    for ab in zip(*unbound, strict=True)
                ]
            return LowRankWeight(self.weight[expert], self._by_expert[expert], flipped=self.flipped)
        if self.weight.ndim == 3 and isinstance(index, Tensor) and index.ndim == 1:
            updates = [update.picked(index) for update in self.updates]
            return LowRankWeight(self.weight[index], updates, flipped=self.flipped)
        return self.dense()[index]

    @property
    def mT(self) -> Self:  # noqa: N802  a tensor's name
        """The last two dimensions exchanged."""
        return type(self)(self.weight.mT, self.updates, flipped=not self.flipped)

    def transpose(self, dim0: int, dim1: int) -> Any:
        """As `Tensor.transpose`."""
        ndim = self.weight.ndim
        if {dim0 % ndim, dim1 % ndim} == {ndim - 2, ndim - 1}:
            return self.mT
        return self.dense().transpose(dim0, dim1)

    def t(self) -> Any:
        """As `Tensor.t`."""
        return self.mT if self.weight.ndim == 2 else self.dense().t()

    T = property(lambda self: self.t())

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(cast(Tensor, self), other)

    # ----------------------------------------------------------------------------- products

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A product that is known, or `func` of the weights as tensors."""
        del types
        kwargs = kwargs or {}
        rule = _RULES.get(getattr(func, "__name__", ""))
        if rule is not None:
            found = rule(func, args, kwargs)
            if found is not None:
                return found
        plain = [_as_tensor(value) for value in args]
        return func(*plain, **{key: _as_tensor(value) for key, value in kwargs.items()})

    def times_on_right(
        self, x: Tensor, y: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """``y``, which is x times W, and the updates: `multiply` does what made y."""
        for a, b, s, p in self.updates:
            seen = F.dropout(x, p) if p > 0 else x
            first, second = (a.mT, b.mT) if self.flipped else (b, a)
            y = y + multiply(multiply(seen, first.to(x.dtype)), second.to(x.dtype)) * s
        return y

    def times_on_left(
        self, x: Tensor, y: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """``y``, which is W times x, and the updates."""
        for a, b, s, p in self.updates:
            seen = F.dropout(x, p) if p > 0 else x
            first, second = (b.mT, a.mT) if self.flipped else (a, b)
            y = y + multiply(second.to(x.dtype), multiply(first.to(x.dtype), seen)) * s
        return y


def _linear(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, weight, *_ = args if len(args) > 1 else (args[0], kwargs["weight"])
    if not isinstance(weight, LowRankWeight) or not isinstance(x, Tensor):
        return None
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    return weight.mT.times_on_right(x, func(x, weight.weight, bias), torch.matmul)


def _matmul(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if kwargs or len(args) != 2:
        return None
    left, right = args
    if isinstance(right, LowRankWeight) and isinstance(left, Tensor):
        return right.times_on_right(left, func(left, right.weight), func)
    if isinstance(left, LowRankWeight) and isinstance(right, Tensor):
        return left.times_on_left(right, func(left.weight, right), func)
    return None


def _addmm(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if kwargs or len(args) != 3 or not isinstance(args[2], LowRankWeight):
        return None
    bias, x, weight = args
    return weight.times_on_right(x, func(bias, x, weight.weight), torch.matmul)


def _grouped(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, weight, *rest = args
    if not isinstance(weight, LowRankWeight) or not isinstance(x, Tensor):
        return None

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        return func(left, right, *rest, **kwargs)

    updates = [update.padded() for update in weight.updates]
    padded = LowRankWeight(weight.weight, updates, flipped=weight.flipped)
    return padded.times_on_right(x, multiply(x, weight.weight), multiply)


_RULES: Mapping[str, Callable[..., Any]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "_grouped_mm": _grouped,
    "grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
}
"""By the name of a function: the products that modules make with their parameters."""


def _as_tensor(value: Any) -> Any:
    if isinstance(value, LowRankWeight):
        return value.dense()
    if isinstance(value, tuple | list):
        return type(value)(_as_tensor(item) for item in cast("Sequence[Any]", value))
    return value


def _is_number(index: object) -> bool:
    if isinstance(index, Tensor):
        return index.ndim == 0 and not index.is_floating_point() and index.dtype != torch.bool
    return isinstance(index, int) and not isinstance(index, bool)
