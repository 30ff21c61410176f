"""The sinks there are, and whether this Python has what they need."""

import importlib.util
from collections.abc import Sequence
from typing import Literal, get_args

from ince.errors import ConfigError, Problem

__all__ = ["SINK_NAMES", "SinkName", "require_installed"]

SinkName = Literal["tensorboard", "wandb", "mlflow", "trackio"]

SINK_NAMES: tuple[SinkName, ...] = get_args(SinkName)
"""Each is the name of its package, too."""


def require_installed(names: Sequence[str]) -> None:
    """Refuse sinks whose packages are missing, before a run has begun.

    Raises:
        ConfigError: all that are missing, and how to install them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "the run is to be reported where this Python cannot report to",
            problems=[Problem("train.report_to", f"{name} is not installed") for name in missing],
            do=f"pip install {' '.join(missing)}; or leave it out: log.jsonl is always written",
        )
