"""trackio: the local tracker of Hugging Face, one run of the project ``ince``.

``TRACKIO_PROJECT`` and trackio's own variables count (``TRACKIO_DIR`` says where its database
is; without it, in ``sinks/trackio`` of the run folder). Its watching of processor, GPU and
console is turned off where it can be.
"""

import importlib
import io
import os
import secrets
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from ince.train.sinks.sink import SinkContext

__all__ = ["TrackioSink"]


class TrackioSink:
    """Logs with trackio's Python library."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._run: Any = None

    def start(self, config: Mapping[str, object], _first_step: int, /) -> None:
        """Begin the run, or go on with the one of the name that was kept."""
        # trackio reads it when it is imported, once and for the process.
        folder = (self._context.folder / "trackio").absolute()
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        library: Any = importlib.import_module("trackio")
        identity = self._context.kept_id("trackio")
        if identity is None:
            identity = f"{self._context.run_name}-{secrets.token_hex(4)}"
            self._context.keep_id("trackio", identity)
        with redirect_stdout(io.StringIO()):  # what it prints is not what a command prints
            self._run = library.init(
                project=os.environ.get("TRACKIO_PROJECT", "ince"),
                name=identity,
                config=dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of trackio's history."""
        self._run.log(dict(metrics), step=step)

    def finish(self, _status: str, /) -> None:
        """Hand over what is left."""
        if self._run is not None:
            library: Any = importlib.import_module("trackio")
            with redirect_stdout(io.StringIO()):
                library.finish()
