"""What a sink is: it is started, given numbers by step, and finished.

A sink may raise anything at any time (a server that is away, a full disk): whoever holds it
(`ince.train.sinks.reporting`) says so once, drops it, and goes on.

A run that is resumed goes on in the sink where it was. The identity that this takes is kept in
the run folder, in ``sinks/ids.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ince.errors import InceError
from ince.files import read_json, write_json

__all__ = ["Sink", "SinkContext"]


class Sink(Protocol):
    """One place that a run is reported to."""

    def start(self, config: Mapping[str, object], first_step: int, /) -> None:
        """The run begins, or goes on after `first_step`.

        Args:
            config: of the run, plain JSON values; nothing of the machine is in it.
            first_step: later steps that the sink has heard of before are superseded.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Finite numbers of one step, by name (``train/loss``)."""
        ...

    def finish(self, status: str, /) -> None:
        """The run ended: ``done``, ``interrupted`` or ``failed``."""
        ...


@dataclass(frozen=True)
class SinkContext:
    """What a sink is made with: the run's name, and a folder of its own inside the run's."""

    run_name: str
    folder: Path

    def kept_id(self, sink: str) -> str | None:
        """The identity that `keep_id` wrote; None when there is none that can be read."""
        try:
            found = read_json(self.folder / "ids.json").get(sink)
        except InceError:
            return None
        return found if isinstance(found, str) else None

    def keep_id(self, sink: str, value: str) -> None:
        """Remember an identity for the next sitting."""
        path = self.folder / "ids.json"
        try:
            known = read_json(path)
        except InceError:
            known = {}
        write_json(path, known | {sink: value})
