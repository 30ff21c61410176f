"""Where converted models live, and digests of big files without reading them twice.

The folder is ``$INCE_CACHE``, else ``$XDG_CACHE_HOME/ince``, else ``~/.cache/ince``.
Everything in it can be deleted at any time and is made again when needed.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ince.errors import InceError
from ince.files import read_json, sha256_bytes, sha256_file, write_json

__all__ = ["cache_folder", "file_digest", "folder_digest", "known_digest"]


def cache_folder() -> Path:
    """The folder of everything that ince can make again."""
    if chosen := os.environ.get("INCE_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "ince"
    return Path.home() / ".cache" / "ince"


def file_digest(path: Path, *, verify: bool = False) -> str:
    """Hex SHA-256 of a file; remembered while its size and time of change stay.

    Args:
        path: the file.
        verify: read the bytes even when the digest is remembered.
    """
    known = None if verify else known_digest(path)
    if known is not None:
        return known
    memory, facts = _memory(path)
    digest = sha256_file(Path(facts["path"]))
    # Remembering is a convenience: a cache that cannot be written to costs time only.
    with contextlib.suppress(InceError, OSError):
        write_json(memory, {**facts, "sha256": digest})
    return digest


def known_digest(path: Path) -> str | None:
    """What `file_digest` remembers of a file, or None: nothing is read but the memory."""
    memory, facts = _memory(path)
    with contextlib.suppress(InceError, OSError):
        known = read_json(memory)
        digest = known.pop("sha256", None)
        if known == facts and isinstance(digest, str):
            return digest
    return None


def _memory(path: Path) -> tuple[Path, dict[str, Any]]:
    """Where the digest of a file is remembered, and the facts that it depends on."""
    path = Path(path).resolve()
    state = path.stat()
    memory = cache_folder() / "digests" / f"{sha256_bytes(os.fsencode(path))}.json"
    return memory, {"path": str(path), "size": state.st_size, "changed_ns": state.st_mtime_ns}


def folder_digest(folder: Path, names: Iterable[str]) -> str:
    """One digest of several files of a folder: SHA-256 over their names and digests."""
    lines = [f"{file_digest(Path(folder) / name)}  {name}\n" for name in sorted(names)]
    return sha256_bytes("".join(lines).encode())
