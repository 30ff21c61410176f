"""How pages get from memory to where the parameters are, and back.

    HostCarrier     parameters on a CPU: they are there already
    CopyCarrier     a device without streams: a copy each way, one after the other
    StreamCarrier   CUDA: copies on two streams of their own, beside the arithmetic

Nothing here is managed memory: a page is moved when its turn comes, by name.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ince.optim.pages.memory import page_memory

__all__ = ["Carrier", "CopyCarrier", "HostCarrier", "StreamCarrier", "carrier_of"]

_NUM_STAGED = 3
"""Pages on the device at once: one arrives, one is worked on, one leaves."""


class Carrier(Protocol):
    """Between memory and one device."""

    @property
    def is_host(self) -> bool:
        """The device is memory itself."""
        ...

    @property
    def is_pinned(self) -> bool:
        """Memory for pages is pinned."""
        ...

    def transit_bytes(self, page_bytes: int) -> int:
        """What pages in transit take on the device."""
        ...

    def zeros(self, num_bytes: int) -> Tensor:
        """A page of zeros on the device."""
        ...

    def begin(self) -> None:
        """A step begins: what it carries up must have come down before."""
        ...

    def up(self, host: Tensor) -> Tensor:
        """Begin to carry a page up; returns where it will be."""
        ...

    def use(self, staged: Tensor) -> None:
        """The page is about to be worked on."""
        ...

    def down(self, staged: Tensor, host: Tensor) -> Callable[[], None]:
        """Begin to carry a page that was worked on down; what is returned waits until it is."""
        ...

    def settle(self) -> None:
        """Wait until all pages are down."""
        ...


def _nothing() -> None:
    pass


class HostCarrier:
    """Parameters on a CPU."""

    is_host = True
    is_pinned = False

    def transit_bytes(self, page_bytes: int) -> int:  # noqa: ARG002 - whatever their size
        """None."""
        return 0

    def zeros(self, num_bytes: int) -> Tensor:
        """A page in memory."""
        return page_memory(num_bytes, pinned=False)

    def begin(self) -> None:
        """Nothing is under way."""

    def up(self, host: Tensor) -> Tensor:
        """It is there."""
        return host

    def use(self, staged: Tensor) -> None:
        """It is there."""

    def down(self, staged: Tensor, host: Tensor) -> Callable[[], None]:  # noqa: ARG002 - one tensor
        """It is there."""
        return _nothing

    def settle(self) -> None:
        """Nothing is under way."""


class CopyCarrier:
    """A device without streams, such as MPS."""

    is_host = False
    is_pinned = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def transit_bytes(self, page_bytes: int) -> int:
        """A page that is worked on, and the next."""
        return 2 * page_bytes

    def zeros(self, num_bytes: int) -> Tensor:
        """A page on the device."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def begin(self) -> None:
        """Nothing is under way."""

    def up(self, host: Tensor) -> Tensor:
        """A copy on the device."""
        return host.to(self._device, copy=True)

    def use(self, staged: Tensor) -> None:
        """It is there."""

    def down(self, staged: Tensor, host: Tensor) -> Callable[[], None]:
        """Copy it back."""
        host.copy_(staged)
        return _nothing

    def settle(self) -> None:
        """Nothing is under way."""


class StreamCarrier:
    """CUDA: a ring of places on the device, one stream that fills and one that empties them.

    Only the device waits, and only for what it needs: the arithmetic for the page that it works
    on, a place for the page that leaves it.
    """

    is_host = False
    is_pinned = True

    def __init__(self, device: torch.device, page_bytes: int) -> None:
        self._device = device
        self._up = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)
        self._page_bytes = page_bytes
        self._places: list[Tensor] = []
        self._arrived: dict[int, Any] = {}
        self._left: dict[int, Any] = {}
        self._next = 0

    def transit_bytes(self, page_bytes: int) -> int:
        """The ring."""
        return _NUM_STAGED * page_bytes

    def zeros(self, num_bytes: int) -> Tensor:
        """A page on the device."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def begin(self) -> None:
        """Pages of this step are carried up after those of the last one came down."""
        self._up.wait_stream(self._down)

    def up(self, host: Tensor) -> Tensor:
        """Begin to fill the next place of the ring."""
        if not self._places:
            self._places = [
                torch.empty(self._page_bytes, dtype=torch.uint8, device=self._device)
                for _ in range(_NUM_STAGED)
            ]
            # The memory may have been another stream's a moment ago.
            self._up.wait_stream(torch.cuda.current_stream(self._device))
        place = self._places[self._next]
        self._next = (self._next + 1) % _NUM_STAGED
        key = place.data_ptr()
        staged = place[: host.numel()]
        if key in self._left:
            self._up.wait_event(self._left[key])
        with torch.cuda.stream(self._up):
            staged.copy_(host, non_blocking=True)
            self._arrived[key] = self._up.record_event()
        return staged

    def use(self, staged: Tensor) -> None:
        """The arithmetic that follows waits for the page."""
        torch.cuda.current_stream(self._device).wait_event(self._arrived[staged.data_ptr()])

    def down(self, staged: Tensor, host: Tensor) -> Callable[[], None]:
        """Begin to empty the place, after the arithmetic so far."""
        self._down.wait_event(torch.cuda.current_stream(self._device).record_event())
        with torch.cuda.stream(self._down):
            host.copy_(staged, non_blocking=True)
            event = self._down.record_event()
        self._left[staged.data_ptr()] = event
        return event.synchronize

    def settle(self) -> None:
        """Wait for both streams."""
        self._up.synchronize()
        self._down.synchronize()


def carrier_of(device: torch.device, page_bytes: int) -> Carrier:
    """The carrier for parameters on `device`, of pages of at most so many bytes."""
    if device.type == "cpu":
        return HostCarrier()
    if device.type == "cuda":
        return StreamCarrier(device, page_bytes)
    return CopyCarrier(device)
