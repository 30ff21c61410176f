"""The lowest tier: a private file that has no name, written and read in whole pages.

The file is readable by its owner alone and is gone with the process, however that ends: where
the system can, it is made without a name, else its name is removed at once. Its space is taken
before it is needed, so that a disk does not fill in the middle of a step.

The pages are read and written, not mapped: what a process maps counts as its memory, and an
error of the disk under a map is a signal that kills.
"""

import errno
import os
import tempfile
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from ince.errors import ConfigError, CorruptFileError, DiskFullError, InceError, Problem
from ince.units import format_bytes

__all__ = ["PageFile", "page_directory"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_ALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def page_directory(directory: Path | None) -> Path:
    """Where page files are made: as given, else TMPDIR, else the place for large ones.

    Raises:
        ConfigError: a given one is no folder that may be written to.
    """
    if directory is not None:
        if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
            what = "may not be written to" if directory.is_dir() else "is not a folder"
            raise ConfigError(
                "there is no place for the page file",
                problems=[Problem("pages.directory", f"{directory} {what}")],
            )
        return directory
    large = Path("/var/tmp")  # noqa: S108 - a folder, in which no name is fixed
    # Often on a disk where the usual place for temporary files is in memory.
    if "TMPDIR" not in os.environ and large.is_dir() and os.access(large, os.W_OK | os.X_OK):
        return large
    return Path(tempfile.gettempdir())


class PageFile:
    """Space for pages in a file, which is made when the first page needs it.

    Reading and writing may be done on other threads; the rest is the owner's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._handle: int | None = None
        self._size = 0
        # Places that were given back, by their size.
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self._moved_bytes = 0

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk."""
        return self._size

    @property
    def moved_bytes(self) -> int:
        """Read and written so far."""
        return self._moved_bytes

    def allot(self, sizes: Sequence[int]) -> list[int]:
        """Places of these sizes, as offsets; all of them, or none.

        Raises:
            DiskFullError: there is no room; the file is as it was.
            ConfigError: no file can be made here.
        """
        places: list[int] = []
        end = self._size
        taken: list[tuple[int, int]] = []
        for size in sizes:
            if self._free[size]:
                places.append(self._free[size].pop())
                taken.append((size, places[-1]))
            else:
                places.append(end)
                end += size
        if end > self._size:
            try:
                self._extend(end)
            except InceError:
                for size, place in taken:
                    self._free[size].append(place)
                raise
        return places

    def give_back(self, place: int, size: int) -> None:
        """A place that is not needed any more."""
        self._free[size].append(place)

    def read(self, offset: int, into: Tensor) -> None:
        """Fill (n,) uint8 in memory from `offset` on.

        Raises:
            CorruptFileError: the file ends before, or cannot be read.
        """
        view = into.numpy().data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._opened(), [view[done:]], offset + done)
            except OSError as error:
                raise CorruptFileError(
                    "the file of optimizer state cannot be read",
                    where=self.directory,
                    got=error.strerror,
                    do="go on from the last checkpoint, with pages.directory on another disk",
                ) from error
            if count == 0:
                raise self._cut_off(offset + done)
            done += count
        self._count(done)

    def write(self, offset: int, data: Tensor) -> None:
        """Write (n,) uint8 in memory to `offset`.

        Raises:
            DiskFullError: there is no room, though it was taken before (a file system that
                copies on write).
            CorruptFileError: the file cannot be written.
        """
        view = data.numpy().data
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._opened(), view[done:], offset + done)
            except OSError as error:
                self._refused(error)
        self._count(done)

    def check(self) -> None:
        """See that all of the file is still there.

        Raises:
            CorruptFileError: it was cut off.
        """
        if self._handle is not None:
            size = os.fstat(self._handle).st_size
            if size < self._size:
                raise self._cut_off(size)

    def close(self) -> None:
        """Let the file go; nothing of it remains."""
        if self._handle is not None:
            self._closing()
            self._handle = None
        self._size = 0
        self._free.clear()

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._moved_bytes += num_bytes

    def _opened(self) -> int:
        if self._handle is None:
            self._handle = self._open()
            # Not __del__: when the interpreter ends, what that would call may be gone.
            self._closing = weakref.finalize(self, os.close, self._handle)
        return self._handle

    def _open(self) -> int:
        try:
            if hasattr(os, "O_TMPFILE"):
                try:
                    return os.open(self.directory, os.O_TMPFILE | os.O_RDWR, 0o600)
                except OSError as error:
                    if error.errno in _FULL:
                        raise
            handle, name = tempfile.mkstemp(prefix=".ince-pages-", dir=self.directory)
            Path(name).unlink()
        except OSError as error:
            if error.errno in _FULL:
                self._refused(error)
            raise ConfigError(
                "the file for optimizer state cannot be made",
                problems=[Problem("pages.directory", f"{self.directory}: {error.strerror}")],
            ) from error
        return handle

    def _extend(self, end: int) -> None:
        handle = self._opened()
        try:
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(handle, self._size, end - self._size)
                except OSError as error:
                    if error.errno not in _CANNOT_ALLOCATE:
                        raise
                    os.ftruncate(handle, end)
            else:
                os.ftruncate(handle, end)
        except OSError as error:
            os.ftruncate(handle, self._size)
            self._refused(error, needed=end - self._size)
        self._size = end

    def _refused(self, error: OSError, needed: int | None = None) -> NoReturn:
        if error.errno in _FULL:
            raise DiskFullError(
                "no space left on the device for optimizer state",
                where=self.directory,
                got=None if needed is None else f"{format_bytes(needed)} more are needed",
                do="free some space, choose another pages.directory, or give more memory",
            ) from error
        raise CorruptFileError(
            "the file of optimizer state cannot be written",
            where=self.directory,
            got=error.strerror,
            do="go on from the last checkpoint, with pages.directory on another disk",
        ) from error

    def _cut_off(self, at: int) -> CorruptFileError:
        return CorruptFileError(
            "the file of optimizer state was cut off while it was in use",
            where=self.directory,
            got=f"{at} bytes",
            expected=f"{self._size} bytes",
            do="go on from the last checkpoint",
        )
