"""`AdapterState`: which adapters are on, held once for a whole model.

Each adapted module looks here at every forward. So switching, disabling and routing are one
assignment and not a walk over the layers, and no layer can be left behind in an old state.

Which adapters are on is one for all threads. The routing of a mixed batch is the calling
thread's own: a server's threads must not meet each other's adapters.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ince.lora.layers.projections import Projections
    from ince.lora.mixed.routing import Routing

__all__ = ["AdapterState", "active_for_now"]


@dataclass(eq=False)
class AdapterState:
    """Shared by all adapted modules of one model."""

    active: tuple[str, ...] = ()
    """Names of the adapters whose updates add up."""
    disabled: bool = False
    """Whether the model is its base."""
    shared: "dict[str, Projections]" = field(default_factory=dict, repr=False)
    """By adapter, the matrices that all its layers have in common (VeRA)."""
    _routings: "dict[int, Routing]" = field(default_factory=dict, repr=False)
    # What layers keep for routed calls is one for all threads: they take turns.
    turn: Any = field(default_factory=threading.RLock, repr=False)
    """Held for the length of a routed call."""

    @property
    def routing(self) -> "Routing | None":
        """An adapter for each row of the batch, for one call of the thread that asks."""
        return self._routings.get(threading.get_ident()) if self._routings else None

    @routing.setter
    def routing(self, routing: "Routing | None") -> None:
        if routing is None:
            self._routings.pop(threading.get_ident(), None)
        else:
            self._routings[threading.get_ident()] = routing

    def __getstate__(self) -> dict[str, Any]:
        return {"active": self.active, "disabled": self.disabled, "shared": self.shared}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values, _routings={}, turn=threading.RLock())


@contextlib.contextmanager
def active_for_now(state: AdapterState, adapter_names: Sequence[str]) -> Iterator[None]:
    """Inside, these adapters act, whatever is active or disabled otherwise."""
    before = state.active, state.disabled
    state.active, state.disabled = tuple(adapter_names), False
    try:
        yield
    finally:
        state.active, state.disabled = before
