"""The store: all pages of an optimizer, on three tiers, and the step through them.

A step takes the pages in the file first, all or none of them (`ince.optim.pages.stream`), since
only there anything can fail. Those in memory and on the device follow.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ince.errors import TrainingError
from ince.heap import give_back
from ince.optim.pages.carrier import Carrier
from ince.optim.pages.config import PagesConfig
from ince.optim.pages.file import PageFile, page_directory
from ince.optim.pages.layout import PagePlan
from ince.optim.pages.memory import page_memory
from ince.optim.pages.page import Page, Tier
from ince.optim.pages.placement import Budgets, place
from ince.optim.pages.stream import NUM_BUFFERS, FileStream, Work

__all__ = ["PageStore", "PagesUsage"]


@dataclass(frozen=True)
class PagesUsage:
    """Where state is, and what moving it cost since the start."""

    device_bytes: int
    """State on the device."""
    memory_bytes: int
    """State in memory, and the buffers for what passes through."""
    file_bytes: int
    """State in the file."""
    disk_bytes: int
    """What the file takes on the disk: every page is there twice, beside parameters' old values."""
    moved_bytes: int
    """Read from the file and written to it."""
    waited_seconds: float
    """How long steps stood still for the file."""


class PageStore:
    """Pages under budgets.

    Args:
        config: budgets, size of a page, and the folder of the file.

    Raises:
        ConfigError: the folder is none.
    """

    def __init__(self, config: PagesConfig) -> None:
        self.pages: list[Page] = []
        self.budgets = Budgets(config.device, config.memory, config.file)
        self.page_bytes = config.page_bytes
        self._file = PageFile(page_directory(config.directory))
        self._stream: FileStream | None = None
        self._waited_seconds = 0.0
        self._is_torn = False

    # -------------------------------------------------------------------------------- where

    def add(self, plans: Sequence[tuple[PagePlan, Carrier]]) -> list[Page]:
        """Make pages of zeros, each directly on the lowest tier that it has to be on.

        Raises:
            ConfigError: there is no room under the budgets.
            DiskFullError: nor on the disk; all pages are as they were.
        """
        first = len(self.pages)
        new = [Page(first + i, plan, carrier) for i, (plan, carrier) in enumerate(plans)]
        pages = [*self.pages, *new]
        self._move(pages, place(pages, self.budgets))
        self.pages = pages
        return new

    def set_budgets(self, budgets: Budgets) -> None:
        """Move pages until they are within other budgets; between two steps.

        Raises:
            ConfigError, DiskFullError: there is no room; budgets and pages are as they were.
            CorruptFileError: a page cannot be moved; it and those after it are where they were.
        """
        self._move(self.pages, place(self.pages, budgets))
        self.budgets = budgets
        give_back()

    def usage(self) -> PagesUsage:
        """Bytes by tier, and what moving cost."""
        held = dict.fromkeys(Tier, 0)
        for page in self.pages:
            if page.tier is not None:
                # On a CPU the device is memory.
                is_memory = page.tier is Tier.DEVICE and page.carrier.is_host
                held[Tier.MEMORY if is_memory else page.tier] += page.plan.state_bytes
        stream = self._stream
        return PagesUsage(
            device_bytes=held[Tier.DEVICE],
            memory_bytes=held[Tier.MEMORY]
            + (0 if stream is None else NUM_BUFFERS * stream.page_bytes),
            file_bytes=held[Tier.FILE],
            disk_bytes=self._file.size,
            moved_bytes=self._file.moved_bytes,
            waited_seconds=self._waited_seconds
            + (0.0 if stream is None else stream.waited_seconds),
        )

    # --------------------------------------------------------------------------------- a step

    def step(self, pages: Sequence[Page], work: Work) -> None:
        """Take a step of `pages`, in the order of the store.

        Raises:
            CorruptFileError, DiskFullError: of the file; everything is as before the step.
            TrainingError: an earlier step was cut off in its middle.
        """
        if self._is_torn:
            raise _torn()
        self._file.check()
        in_file = [page for page in pages if page.tier is Tier.FILE]
        others = [page for page in pages if page.tier is not Tier.FILE]
        for carrier in {id(page.carrier): page.carrier for page in pages}.values():
            carrier.begin()
        if in_file:
            assert self._stream is not None  # made with the first page in the file
            try:
                self._stream.run(in_file, work)
            except TrainingError:
                self._is_torn = True
                raise
            self._stream.fetch_ahead(in_file)
        try:
            self._step_held(others, work)
        except BaseException:
            self._is_torn = True
            raise

    def _step_held(self, pages: Sequence[Page], work: Work) -> None:
        """Those that are not in the file; the next one goes up while one is worked on."""
        if not pages:
            return
        staged = self._lift(pages[0])
        for page, following in [*pairwise(pages), (pages[-1], None)]:
            coming = None if following is None else self._lift(following)
            if page.tier is Tier.MEMORY:
                page.carrier.use(staged)
            work.compute(page, staged)
            if page.tier is Tier.MEMORY:
                assert page.held is not None
                page.carrier.down(staged, page.held)
            if coming is not None:
                staged = coming

    def _lift(self, page: Page) -> Tensor:
        assert page.held is not None  # it is not in the file
        return page.carrier.up(page.held) if page.tier is Tier.MEMORY else page.held

    # --------------------------------------------------------------- one page, between two steps

    @contextmanager
    def opened(self, page: Page, *, write: bool) -> Iterator[Tensor]:
        """The states of a page in memory, for reading or also for writing.

        Raises:
            CorruptFileError, DiskFullError: of the file.
            TrainingError: an earlier step was cut off in its middle.
        """
        if self._is_torn:
            raise _torn()
        if page.tier is Tier.FILE:
            assert self._stream is not None
            yield page.states(self._stream.open(page))
            if write:
                self._stream.write(page)
            return
        held = page.held
        assert held is not None
        page.carrier.settle()
        host = held.cpu()
        yield host
        if write and host is not held:
            held.copy_(host)

    @contextmanager
    def filled_anew(self) -> Iterator[None]:
        """Inside, all pages are gone and others are made; until that ends well, no step is taken.

        The file is let go first, so that the old state and the new need no room together.
        """
        self.close()
        self._is_torn = False
        try:
            yield
        except BaseException:
            self._is_torn = True
            raise

    def close(self) -> None:
        """Let all pages, buffers and the file go."""
        self.pages = []
        self._close_stream()
        self._file.close()

    # ---------------------------------------------------------------------------------- moving

    def _move(self, pages: Sequence[Page], tiers: Sequence[Tier]) -> None:
        """Give each page its tier. The file takes its room before any page is moved."""
        down = [
            page
            for page, tier in zip(pages, tiers, strict=True)
            if tier is Tier.FILE and page.tier is not Tier.FILE
        ]
        sizes = [page.file_bytes for page in down]
        places = self._file.allot(sizes)
        for page, where in zip(down, places, strict=True):
            page.place, page.version = where, 0
        self._make_stream(pages, tiers)
        try:
            # Down before up, so that what leaves makes room.
            for page, tier in zip(pages, tiers, strict=True):
                if tier is Tier.FILE:
                    self._to_file(page)
            for page, tier in zip(pages, tiers, strict=True):
                if tier is not page.tier:
                    self._hold(page, tier)
        finally:
            for page in down:
                if page.tier is not Tier.FILE:
                    self._leave_file(page)
        if Tier.FILE not in tiers:
            self._close_stream()

    def _make_stream(self, pages: Sequence[Page], tiers: Sequence[Tier]) -> None:
        """Buffers for the largest page, before a page is in the file, and when a larger comes."""
        if Tier.FILE not in tiers:
            return
        needed = max(page.plan.total_bytes for page in pages)
        if self._stream is not None and self._stream.page_bytes >= needed:
            self._stream.drop()
            return
        self._close_stream()
        is_pinned = any(page.carrier.is_pinned for page in pages)
        self._stream = FileStream(self._file, needed, is_pinned=is_pinned)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._waited_seconds += self._stream.waited_seconds
            self._stream.close()
            self._stream = None

    def _to_file(self, page: Page) -> None:
        if page.tier is not Tier.FILE and page.held is not None:
            assert self._stream is not None
            buffer = self._stream.buffer()
            page.carrier.settle()
            page.states(buffer).copy_(page.held)
            page.store(self._file, buffer, with_old=False)
            page.commit()
        page.tier, page.held = Tier.FILE, None

    def _hold(self, page: Page, tier: Tier) -> None:
        """Bring a page to memory or to its device."""
        size = page.plan.state_bytes
        if tier is Tier.DEVICE:
            held = page.carrier.zeros(size)
        else:
            held = page_memory(size, pinned=page.carrier.is_pinned)
        if page.tier is not None:
            with self.opened(page, write=False) as states:
                held.copy_(states)
        was_in_file = page.tier is Tier.FILE
        page.tier, page.held = tier, held
        if was_in_file:
            self._leave_file(page)

    def _leave_file(self, page: Page) -> None:
        if page.place is not None:
            self._file.give_back(page.place, page.file_bytes)
            page.place, page.version = None, 0


def _torn() -> TrainingError:
    return TrainingError(
        "an earlier step was cut off in its middle, so there is no state to go on from",
        do="load the state and the parameters of the last checkpoint",
    )
