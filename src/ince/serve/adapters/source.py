"""`AdapterSource`: where an adapter's files are, by its digest; and `Folders`, the plain one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ince.errors import AdapterError

__all__ = ["AdapterSource", "Folders"]


class AdapterSource(Protocol):
    """Knows adapters by content; a registry is one."""

    def folder(self, digest: str) -> Path:
        """The folder with the files of this digest.

        Raises:
            AdapterError: there is none, or none any more.
        """
        ...


class Folders:
    """Adapters in folders that somebody named.

    Args:
        folders: by digest; read when an adapter is asked for, so that it may grow.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    def folder(self, digest: str) -> Path:
        """The folder of this digest.

        Raises:
            AdapterError: there is none.
        """
        found = self._folders.get(digest)
        if found is None:
            raise AdapterError("no adapter of this digest is known", got=digest)
        return found
