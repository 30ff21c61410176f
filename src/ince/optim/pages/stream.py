"""A step through the pages in the file: read ahead, work, write behind, all of it or nothing.

    1  a page is read into a buffer before its turn, on a thread
    2  the values of its parameters are kept behind its states; it takes its step
    3  it is written to its place that is not in force, and those values to theirs, on another
       thread
    4  when every page is written, the new places are in force, all at once

When anything fails before 4, the parameters get their values back, from the buffers or from the
file, and the states in force are the old ones still.

A few buffers serve any number of pages. After a step the first pages of the next one are
fetched, while the model computes its gradients.
"""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from torch import Tensor

from ince.errors import TrainingError
from ince.optim.pages.file import PageFile
from ince.optim.pages.memory import page_memory
from ince.optim.pages.page import Page

__all__ = ["NUM_BUFFERS", "FileStream", "Work"]

NUM_BUFFERS = 4
"""One is worked on, one is read, one is written, and one evens out who is late."""


class Work(Protocol):
    """What a step does with a page."""

    def compute(self, page: Page, states: Tensor) -> None:
        """Take the step of the page's pieces; `states` are where the parameters are."""
        ...

    def keep_old(self, page: Page, old: Tensor) -> None:
        """Copy the values of the page's parameters into `old`, in memory."""
        ...

    def put_back(self, page: Page, old: Tensor) -> None:
        """Give the parameters the values that `keep_old` kept."""
        ...


class FileStream:
    """Buffers and threads for pages in the file.

    Args:
        file: where the pages are.
        page_bytes: of the largest page, as it is written.
        is_pinned: an accelerator reads the buffers.
    """

    def __init__(self, file: PageFile, page_bytes: int, *, is_pinned: bool) -> None:
        self._file = file
        self.page_bytes = page_bytes
        self._buffers = [page_memory(page_bytes, pinned=is_pinned) for _ in range(NUM_BUFFERS)]
        self._free = list(self._buffers)
        self._reader = ThreadPoolExecutor(1, "ince-pages-in")
        self._writer = ThreadPoolExecutor(1, "ince-pages-out")
        self._reads: dict[Page, tuple[Tensor, Future[None]]] = {}
        self._writes: deque[tuple[Page, Tensor, Future[None]]] = deque()
        # Pages that took their step, with the buffer while it is not written.
        self._stepped: dict[Page, Tensor | None] = {}
        # What the first buffer holds between two steps.
        self._opened: tuple[Page, int] | None = None
        self.waited_seconds = 0.0

    def run(self, pages: Sequence[Page], work: Work) -> None:
        """Take the step of `pages`, which are in the file; of all, or of none.

        Raises:
            CorruptFileError, DiskFullError: a page cannot be read or written; parameters and
                states are as before the step.
            TrainingError: and some parameters could not be put back.
        """
        self._stepped.clear()
        try:
            self._drop(keep=set(pages))
            for turn, page in enumerate(pages):
                buffer = self._arrived(page, pages[turn:])
                self._step(page, buffer, work)
            while self._writes:
                self._finish_a_write()
        except BaseException as error:
            self._take_back(work, error)
            raise
        for page in pages:
            page.commit()
        self._stepped.clear()

    def fetch_ahead(self, pages: Sequence[Page]) -> None:
        """Begin to read the first of `pages`, as many as there are buffers."""
        self._opened = None
        for page in pages:
            if page not in self._reads:
                if not self._free:
                    return
                buffer = self._free.pop()
                self._reads[page] = buffer, self._reader.submit(page.fetch, self._file, buffer)

    def drop(self) -> None:
        """Forget what was fetched ahead."""
        self._drop(keep=set())

    def buffer(self) -> Tensor:
        """A buffer for use between steps; what was fetched ahead is forgotten."""
        self.drop()
        self._opened = None
        return self._buffers[0]

    def open(self, page: Page) -> Tensor:
        """`buffer`, with the page in it; several uses in a row read it once."""
        if self._opened != (page, page.version):
            buffer = self.buffer()
            page.fetch(self._file, buffer)
            self._opened = page, page.version
        return self._buffers[0]

    def write(self, page: Page) -> None:
        """Write the page that is open, and put it in force."""
        page.store(self._file, self._buffers[0], with_old=False)
        page.commit()
        self._opened = page, page.version

    def close(self) -> None:
        """End the threads and let the buffers go."""
        self.drop()
        self._reader.shutdown()
        self._writer.shutdown()
        self._free.clear()
        self._buffers.clear()

    def _step(self, page: Page, buffer: Tensor, work: Work) -> None:
        host = page.states(buffer)
        staged = page.carrier.up(host)
        work.keep_old(page, page.old(buffer))
        self._stepped[page] = buffer
        page.carrier.use(staged)
        work.compute(page, staged)
        is_down = page.carrier.down(staged, host)

        def write() -> None:
            is_down()
            page.store(self._file, buffer, with_old=True)

        self._writes.append((page, buffer, self._writer.submit(write)))

    def _arrived(self, page: Page, coming: Sequence[Page]) -> Tensor:
        """The buffer with the page; those that come after it are on their way."""
        while self._writes and self._writes[0][2].done():
            self._finish_a_write()
        while page not in self._reads and not self._free:
            self._finish_a_write()
        self.fetch_ahead(coming[:NUM_BUFFERS])
        buffer, read = self._reads[page]
        self._wait(read)
        del self._reads[page]
        return buffer

    def _finish_a_write(self) -> None:
        page, buffer, write = self._writes[0]
        self._wait(write)
        self._writes.popleft()
        self._stepped[page] = None
        self._free.append(buffer)

    def _wait(self, future: Future[None]) -> None:
        started = time.monotonic()
        try:
            future.result()
        finally:
            self.waited_seconds += time.monotonic() - started

    def _drop(self, keep: set[Page]) -> None:
        for page in [page for page in self._reads if page not in keep]:
            buffer, read = self._reads.pop(page)
            read.exception()  # waits; what cannot be read is said when it is needed
            self._free.append(buffer)

    def _take_back(self, work: Work, error: BaseException) -> None:
        """Undo the step so far, and be ready for the next."""
        self._drop(keep=set())
        while self._writes:
            _, _, write = self._writes.popleft()
            write.exception()  # waits; what was kept is in the buffer still
        lost: list[str] = []
        # Those in buffers first: after that, any buffer serves for the others.
        for page, buffer in sorted(self._stepped.items(), key=lambda each: each[1] is None):
            try:
                if buffer is None:
                    buffer = self._buffers[0]
                    page.fetch_old(self._file, buffer)
                work.put_back(page, page.old(buffer))
            except Exception as failure:
                lost.append(str(failure))
        self._stepped.clear()
        self._free = list(self._buffers)
        if lost:
            raise TrainingError(
                "a step failed, and some parameters could not be put back to before it",
                got=lost[0].splitlines()[0],
                do="go on from the last checkpoint",
            ) from error
