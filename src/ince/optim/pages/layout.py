"""Which stretch of which parameter's state lies where in which page.

    page       [ states of piece 0 | of piece 1 | … | stamp ][ old values of piece 0 | of 1 | … ]
    piece      a stretch of one parameter that begins at a multiple of `BLOCK` elements

A large parameter is cut into several pages, and many small ones share a page. The second part
exists only in the file, where a page waits for its step to be whole: the parameters' values
before the step, in case it has to be taken back. A page holds pieces of one device.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ince.errors import ConfigError, Problem
from ince.optim.rules import BLOCK, Slot
from ince.units import format_bytes

__all__ = ["STAMP_BYTES", "Item", "PagePlan", "Piece", "cut"]

STAMP_BYTES = 64
"""After the states: the page's number and version, to know it again by."""

_ALIGNMENT = 64  # of every tensor in a page: a cache line, and any vector register


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Item:
    """A parameter that needs state."""

    key: Hashable
    numel: int
    dtype: torch.dtype
    slots: tuple[Slot, ...]

    def num_bytes(self, length: int) -> int:
        """Of the state of a stretch of so many elements."""
        return sum(_aligned(slot.numel(length) * slot.dtype.itemsize) for slot in self.slots)


@dataclass(frozen=True)
class Piece:
    """A stretch of a parameter, and where in the page its state is."""

    item: Item
    start: int
    length: int
    offset: int
    """Of the first slot's bytes; the others follow."""
    old_offset: int
    """Of the parameter's old values, counted from the end of the stamp."""

    @property
    def old_bytes(self) -> int:
        """Of the parameter's own values."""
        return self.length * self.item.dtype.itemsize

    def states(self, page: Tensor) -> Mapping[str, Tensor]:
        """The slots as views of the page's bytes, on whichever device they are."""
        views: dict[str, Tensor] = {}
        at = self.offset
        for slot in self.item.slots:
            size = slot.numel(self.length) * slot.dtype.itemsize
            views[slot.name] = page[at : at + size].view(slot.dtype)
            at += _aligned(size)
        return views

    def old_values(self, old: Tensor) -> Tensor:
        """The parameter's old values as a view of the bytes behind the stamp."""
        return old[self.old_offset : self.old_offset + self.old_bytes].view(self.item.dtype)


@dataclass(frozen=True)
class PagePlan:
    """What a page holds."""

    pieces: tuple[Piece, ...]
    state_bytes: int
    old_bytes: int

    @property
    def total_bytes(self) -> int:
        """As written to the file."""
        return self.state_bytes + STAMP_BYTES + self.old_bytes


def cut(items: Iterable[Item], page_bytes: int) -> list[PagePlan]:
    """Lay the state of `items`, which are of one device, into pages, in their order.

    Raises:
        ConfigError: a page is too small for one block of elements.
    """
    pages: list[PagePlan] = []
    pieces: list[Piece] = []
    used = old = 0
    for item in items:
        start = 0
        while start < item.numel:
            length = _that_fits(item, item.numel - start, page_bytes - used)
            if length == 0:
                if not pieces:
                    raise _too_small(item, page_bytes)
                pages.append(PagePlan(tuple(pieces), used, old))
                pieces, used, old = [], 0, 0
                continue
            piece = Piece(item, start, length, used, old)
            pieces.append(piece)
            used += item.num_bytes(length)
            old += _aligned(piece.old_bytes)
            start += length
    if pieces:
        pages.append(PagePlan(tuple(pieces), used, old))
    return pages


def _that_fits(item: Item, rest: int, room: int) -> int:
    """Elements of the next piece: all that are left, or as many whole blocks as have room."""
    if item.num_bytes(rest) <= room:
        return rest
    blocks = room // item.num_bytes(BLOCK)
    # Rounding each slot up once costs less than rounding it up for every block.
    spare = room - _ALIGNMENT * len(item.slots)
    exact = sum(-(-BLOCK // slot.per) * slot.dtype.itemsize for slot in item.slots)
    return max(blocks, spare // exact) * BLOCK


def _too_small(item: Item, page_bytes: int) -> ConfigError:
    needed = item.num_bytes(min(BLOCK, item.numel))
    return ConfigError(
        "pages are too small",
        problems=[
            Problem(
                "pages.page_bytes",
                f"{format_bytes(page_bytes)} is less than the state of {BLOCK} elements",
                f"give at least {format_bytes(needed)}",
            )
        ],
    )
