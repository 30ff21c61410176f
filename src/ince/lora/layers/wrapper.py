"""`Wrapper`: an adapted module around a module that may be adapted itself.

Different adapters may do different things in one place: one has low-rank factors there, another
a copy of the whole module, a third rows for new tokens. Each kind is a wrapper around the next,
and to the model's walks the outermost speaks for all.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from ince.lora.layers.adapted import Adapted
from ince.lora.layers.state import AdapterState

__all__ = ["Wrapper", "innermost", "part_of", "put_innermost"]

_Kind = TypeVar("_Kind", bound=Adapted)


class Wrapper(Adapted):
    """Adds something of its own to what it wraps; `put_inner` registers that.

    Args:
        inner: the base's module, or an adapted one.
        state: of the model; a module on its own has one of its own.
    """

    level: ClassVar[int]
    """How far out it lies; low-rank factors are innermost."""

    def __init__(self, inner: nn.Module, state: AdapterState | None = None) -> None:
        super().__init__()
        self.state = AdapterState() if state is None else state
        self.put_inner(inner)
        self.train(inner.training)

    def put_inner(self, inner: nn.Module) -> None:
        """Wrap another module instead."""
        self.base_layer = inner

    @classmethod
    def around(cls, outer: nn.Module, state: AdapterState) -> Adapted:
        """`outer` with a wrapper of this kind in it, or around it; itself if it has one."""
        return _with_level(outer, cls.level, cls, state)

    @abstractmethod
    def own_names(self) -> tuple[str, ...]:
        """The adapters of this kind here."""

    @abstractmethod
    def own_tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """`tensors` of this kind."""

    @abstractmethod
    def delete_own(self, adapter_name: str) -> None:
        """Take out what is of this kind."""

    @property
    def inner(self) -> Adapted | None:
        """What is wrapped, if that is adapted too."""
        return self.base_layer if isinstance(self.base_layer, Adapted) else None

    def own_active(self) -> list[str]:
        """The active adapters of this kind."""
        own = self.own_names()
        return [] if self.state.disabled else [name for name in self.state.active if name in own]

    def adapter_names(self) -> tuple[str, ...]:
        """Of this kind and of what is wrapped."""
        inside = () if self.inner is None else self.inner.adapter_names()
        return tuple(dict.fromkeys((*inside, *self.own_names())))

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """Of this kind and of what is wrapped."""
        inside = {} if self.inner is None else self.inner.tensors(adapter_name)
        return {**inside, **self.own_tensors(adapter_name)}

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out; what is wrapped is unwrapped when nothing is left in it."""
        self.delete_own(adapter_name)
        inner = self.inner
        if inner is not None:
            inner.delete_adapter(adapter_name)
            if not inner.adapter_names():
                self.put_inner(inner.get_base_layer())

    def check_active(self, adapter_names: Sequence[str]) -> None:
        """Ask what is wrapped, too."""
        if self.inner is not None:
            self.inner.check_active(adapter_names)


def innermost(module: nn.Module) -> nn.Module:
    """What wrappers are around: a layer with low-rank factors, or the base's module."""
    while isinstance(module, Wrapper):
        module = module.base_layer
    return module


def part_of(adapted: Adapted, kind: type[_Kind]) -> _Kind:
    """The wrapper or layer of a kind in what is adapted."""
    return next(each for each in adapted.chain() if isinstance(each, kind))


def put_innermost(outer: nn.Module, layer: Adapted) -> Adapted:
    """`outer` with an adapted layer in place of what its wrappers are around."""
    if not isinstance(outer, Wrapper):
        return layer
    above = outer
    while isinstance(above.base_layer, Wrapper):
        above = above.base_layer
    above.put_inner(layer)
    return outer


def _with_level(outer: nn.Module, level: int, kind: type[Wrapper], state: AdapterState) -> Adapted:
    above: Wrapper | None = None
    below = outer
    while isinstance(below, Wrapper) and below.level > level:
        above, below = below, below.base_layer
    if isinstance(below, kind):
        assert isinstance(outer, Adapted)  # it holds one
        return outer
    wrapper = kind(below, state)
    if above is None:
        return wrapper
    above.put_inner(wrapper)
    assert isinstance(outer, Adapted)  # a wrapper
    return outer
