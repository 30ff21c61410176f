"""Which tier each page is on, under a budget for each.

Every step uses all pages, in one order, over and over. Then Belady's rule, by which the page
leaves that is needed last, always sends away the page that was just used; those that stay,
stay for good. So the tiers are filled once, in order, and what has no room passes through a few
buffers: no policy moves less. Buffers count against the budget of the tier that they are in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ince.errors import ConfigError, Problem
from ince.optim.pages.page import Page, Tier
from ince.optim.pages.stream import NUM_BUFFERS
from ince.units import format_bytes

__all__ = ["Budgets", "place"]


@dataclass(frozen=True)
class Budgets:
    """Bytes for each tier; None: as many as are needed."""

    device: int | None
    memory: int | None
    file: int | None


def place(pages: Sequence[Page], budgets: Budgets) -> list[Tier]:
    """The tier of each page, those first that come first.

    Raises:
        ConfigError: all tiers together have no room.
    """
    tiers = _fill(pages, budgets.device, budgets.memory, reserve=False)
    if tiers is None:
        tiers = _fill(pages, budgets.device, budgets.memory, reserve=True)
    assert tiers is not None  # the file takes whatever is left
    needed = sum(
        page.file_bytes for page, tier in zip(pages, tiers, strict=True) if tier is Tier.FILE
    )
    if budgets.file is not None and needed > budgets.file:
        raise ConfigError(
            "the optimizer's state does not fit into its pages",
            problems=[
                Problem(
                    "pages",
                    f"{format_bytes(needed)} are left over for a file of "
                    f"{format_bytes(budgets.file)}, in which every page has two places and one for "
                    "old values of its weights",
                    "give more memory or a larger file",
                )
            ],
        )
    return tiers


def _fill(
    pages: Sequence[Page], device: int | None, memory: int | None, *, reserve: bool
) -> list[Tier] | None:
    """Tiers from the top down; with `reserve` less the buffers, and else None unless all fit
    above the file.
    """
    if reserve and memory is not None:
        memory = max(0, memory - NUM_BUFFERS * max(page.plan.total_bytes for page in pages))
    largest = max((page.plan.state_bytes for page in pages), default=0)
    on_device: dict[int, int] = {}  # by carrier: each device has the budget
    in_memory = 0
    tiers: list[Tier] = []
    total: dict[int, int] = {}
    for page in pages:
        total[id(page.carrier)] = total.get(id(page.carrier), 0) + page.plan.state_bytes
    for page in pages:
        size, key = page.plan.state_bytes, id(page.carrier)
        room, host_room = _rooms(page, device, memory, total[key], largest)
        if room is None or on_device.get(key, 0) + size <= room:
            on_device[key] = on_device.get(key, 0) + size
            tiers.append(Tier.DEVICE)
        elif host_room is None or in_memory + size <= host_room:
            in_memory += size
            tiers.append(Tier.MEMORY)
        elif reserve:
            tiers.append(Tier.FILE)
        else:
            return None
    return tiers


def _rooms(
    page: Page, device: int | None, memory: int | None, total: int, largest: int
) -> tuple[int | None, int | None]:
    """What the device of the page and memory may hold."""
    if page.carrier.is_host:
        both = None if device is None or memory is None else device + memory
        return 0, both
    if device is not None and device < total:
        device = max(0, device - page.carrier.transit_bytes(largest))
    return device, memory
