"""``log.jsonl``: a line per step, appended at once, cut back to the step resumed from.

A full disk does not end a run that only wanted to say how it is going: lines wait in memory
until there is room, in their order, and one that was written in part is completed.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from ince.errors import DiskFullError
from ince.files import write_text

__all__ = ["RunLog"]


class RunLog:
    """Appends JSON lines. Use as a context manager."""

    def __init__(
        self, path: Path, *, from_step: int, say: Callable[[str], None] | None = None
    ) -> None:
        """Open for appending; lines of later steps than `from_step` and torn lines are dropped.

        Args:
            path: of the log.
            from_step: that the run goes on after.
            say: is told when lines have to wait.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept: list[str] = []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and entry.get("step", 0) <= from_step:
                    kept.append(line)
            if from_step == 0:
                kept = []
            write_text(path, "".join(line + "\n" for line in kept))
        self._path = path
        self._say = say
        self._waiting = bytearray()
        # Unbuffered: how much of a line was written is known.
        self._stream = path.open("ab", buffering=0)

    def write(self, **entry: object) -> None:
        """Append one line, or let it wait."""
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        waited = bool(self._waiting)
        self._waiting += line.encode(errors="backslashreplace")
        error = self._flush()
        if error is not None and not waited and self._say is not None:
            self._say(f"{self._path.name} cannot be written: {error.strerror}; its lines wait")

    def _flush(self) -> OSError | None:
        try:
            while self._waiting:
                del self._waiting[: self._stream.write(self._waiting)]
        except OSError as error:
            return error
        return None

    def sync(self) -> None:
        """Put what was written on disk: a checkpoint to come must not know more than the log.

        Raises:
            DiskFullError: lines are still waiting.
        """
        error = self._flush()
        if error is None:
            try:
                os.fsync(self._stream.fileno())
            except OSError as refused:
                error = refused
        if error is not None:
            raise DiskFullError(
                f"the log cannot be written: {error.strerror}",
                where=self._path,
                do="free some space and run the same command again",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        # Some network file systems report a full disk only here.
        with contextlib.suppress(OSError):
            self._stream.close()
