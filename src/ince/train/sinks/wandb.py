"""Weights & Biases: one run, gone on with by its id.

``WANDB_MODE`` (offline, disabled), ``WANDB_PROJECT`` and the other variables of wandb count as
they do elsewhere. What wandb would send of its own about the machine, the command line, the
code and the console is turned off: numbers and the recipe are what is sent.
"""

import importlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

from ince.train.sinks.sink import SinkContext

__all__ = ["WandbSink"]

_PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
_STEP = "train/step"


class WandbSink:
    """Logs with wandb's Python library; its files are in ``sinks/wandb`` of the run folder."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._run: Any = None

    def start(self, config: Mapping[str, object], _first_step: int, /) -> None:
        """Begin the run, or go on with the one whose id was kept."""
        library: Any = importlib.import_module("wandb")
        identity = self._context.kept_id("wandb")
        if identity is None:
            identity = secrets.token_hex(8)
            self._context.keep_id("wandb", identity)
        self._context.folder.mkdir(parents=True, exist_ok=True)
        known = getattr(library.Settings, "model_fields", _PRIVATE)
        self._run = library.init(
            project=os.environ.get("WANDB_PROJECT", "ince"),
            name=self._context.run_name,
            id=identity,
            resume="allow",
            dir=str(self._context.folder),
            config=dict(config),
            settings=library.Settings(**{k: v for k, v in _PRIVATE.items() if k in known}),
        )
        # wandb refuses to go back in its own count; a resumed run may repeat some steps.
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of wandb's history."""
        self._run.log({**metrics, _STEP: step})

    def finish(self, status: str, /) -> None:
        """Close the run; it counts as crashed unless it is done."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "done" else 1)
