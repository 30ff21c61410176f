"""``log.jsonl``: a line per step, appended and flushed, cut back to the step resumed from."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ince.files import write_text

__all__ = ["RunLog"]


class RunLog:
    """Appends JSON lines. Use as a context manager."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        """Open for appending; lines of later steps than `from_step` and torn lines are dropped."""
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
        self._stream = path.open("a", encoding="utf-8")

    def write(self, **entry: object) -> None:
        """Append one line."""
        self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Put what was written on disk: a checkpoint to come must not know more than the log."""
        os.fsync(self._stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
