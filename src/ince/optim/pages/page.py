"""A page: what it holds, where it is, and which of its two places in the file is in force.

    in the file     [ states, stamp ][ states, stamp ][ stamp, old values ]

The last place serves one step after the other: what is in it counts only until the step is whole.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ince.errors import CorruptFileError
from ince.optim.pages.carrier import Carrier
from ince.optim.pages.file import PageFile
from ince.optim.pages.layout import STAMP_BYTES, PagePlan

__all__ = ["Page", "Tier"]

_BLOCK_BYTES = 4096  # of a disk


class Tier(Enum):
    """Where a page is."""

    DEVICE = "device"
    MEMORY = "memory"
    FILE = "file"


def _blocks(num_bytes: int) -> int:
    """Rounded up to whole blocks of a disk."""
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


@dataclass(slots=True, eq=False)
class Page:
    """One page.

    Its states have two places in the file, used in turn: the next version is written beside the
    one in force, which is given up only when all pages of a step are written. Version 0 is all
    zeros and was never written.
    """

    number: int
    plan: PagePlan
    carrier: Carrier
    tier: Tier | None = None
    """None: it has no place yet."""
    held: Tensor | None = None
    """Its bytes, on the device or in memory; None in the file."""
    place: int | None = None
    """Offset of its places in the file."""
    version: int = 0

    @property
    def file_bytes(self) -> int:
        """Of its places in the file, all together."""
        return 2 * self._version_bytes + _blocks(STAMP_BYTES + self.plan.old_bytes)

    @property
    def _version_bytes(self) -> int:
        return _blocks(self.plan.state_bytes + STAMP_BYTES)

    def _place_of(self, version: int) -> int:
        """Offset of the place where this version is."""
        assert self.place is not None  # asked of pages in the file
        return self.place + version % 2 * self._version_bytes

    @property
    def _old_place(self) -> int:
        """Offset of the parameters' old values, with a stamp of their own ahead of them."""
        assert self.place is not None  # asked of pages in the file
        return self.place + 2 * self._version_bytes

    def states(self, buffer: Tensor) -> Tensor:
        """The part of a buffer that holds the states."""
        return buffer[: self.plan.state_bytes]

    def old(self, buffer: Tensor) -> Tensor:
        """The part of a buffer that holds the parameters' old values."""
        start = self.plan.state_bytes + STAMP_BYTES
        return buffer[start : start + self.plan.old_bytes]

    # ----------------------------------------------------------------- to and from the file

    def fetch(self, file: PageFile, buffer: Tensor) -> None:
        """Read the states in force.

        Raises:
            CorruptFileError: they cannot be read, or are not what was written.
        """
        if self.version == 0:
            self.states(buffer).numpy().fill(0)
            return
        end = self.plan.state_bytes + STAMP_BYTES
        file.read(self._place_of(self.version), buffer[:end])
        self._check(file, buffer, self.version)

    def store(self, file: PageFile, buffer: Tensor, *, with_old: bool) -> None:
        """Write the next version beside the one in force, which stays so.

        Raises:
            DiskFullError, CorruptFileError: it cannot be written.
        """
        version = self.version + 1
        self._stamp(buffer)[:] = self.number, version
        start, end = self.plan.state_bytes, self.plan.state_bytes + STAMP_BYTES
        file.write(self._place_of(version), buffer[:end])
        if with_old:
            file.write(self._old_place, buffer[start : self.plan.total_bytes])

    def fetch_old(self, file: PageFile, buffer: Tensor) -> None:
        """Read the parameters' old values, as written with the version that is not in force yet.

        Raises:
            CorruptFileError: they cannot be read, or are not what was written.
        """
        start = self.plan.state_bytes
        file.read(self._old_place, buffer[start : self.plan.total_bytes])
        self._check(file, buffer, self.version + 1)

    def commit(self) -> None:
        """The next version, which was written, is in force."""
        self.version += 1

    def _stamp(self, buffer: Tensor) -> NDArray[np.int64]:
        # By NumPy: PyTorch would start threads of its own for each thread that asks it.
        return buffer.numpy()[self.plan.state_bytes :][:16].view(np.int64)

    def _check(self, file: PageFile, buffer: Tensor, version: int) -> None:
        found = self._stamp(buffer).tolist()
        if found != [self.number, version]:
            raise CorruptFileError(
                "the file of optimizer state is not what was written",
                where=file.directory,
                got=f"page {found[0]}, version {found[1]}",
                expected=f"page {self.number}, version {version}",
                do="go on from the last checkpoint",
            )
