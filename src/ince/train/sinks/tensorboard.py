"""TensorBoard: event files in ``sinks/tensorboard`` of the run folder."""

import importlib
import json
from collections.abc import Mapping
from typing import Any

from ince.train.sinks.sink import SinkContext

__all__ = ["TensorBoardSink"]


class TensorBoardSink:
    """Writes scalars with torch's writer."""

    def __init__(self, context: SinkContext) -> None:
        self._folder = context.folder / "tensorboard"
        self._writer: Any = None

    def start(self, config: Mapping[str, object], first_step: int, /) -> None:
        """A new file each sitting; what an earlier one says of later steps is not shown."""
        library: Any = importlib.import_module("torch.utils.tensorboard")
        purge = first_step + 1 if self._folder.is_dir() else None
        self._writer = library.SummaryWriter(log_dir=str(self._folder), purge_step=purge)
        text = json.dumps(config, indent=2, ensure_ascii=False)
        # Four spaces make a block of code, with no mark that a value could end.
        block = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text("recipe", block, global_step=first_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A scalar for each."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self, status: str, /) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.add_text("status", status)
            self._writer.close()
