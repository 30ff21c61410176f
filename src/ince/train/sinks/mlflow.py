"""MLflow: one run in the experiment ``ince``, gone on with by its id.

``MLFLOW_TRACKING_URI`` says where; without it, a database in ``sinks/mlflow`` of the run
folder, which ``mlflow ui --backend-store-uri sqlite:///…`` shows. ``MLFLOW_EXPERIMENT_NAME``
counts, too.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

from ince.train.sinks.sink import SinkContext

__all__ = ["MlflowSink"]

_STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_MAX_VALUE_CHARACTERS = 500
_MAX_PARAMS = 100  # of one request


class MlflowSink:
    """Logs with MLflow's client, which keeps no global state."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context
        self._client: Any = None
        self._run_id = ""

    def start(self, config: Mapping[str, object], _first_step: int, /) -> None:
        """Begin the run, or go on with the one whose id was kept."""
        library: Any = importlib.import_module("mlflow")
        self._client = library.MlflowClient(tracking_uri=self._uri())
        identity = self._context.kept_id("mlflow")
        if identity is not None:
            self._client.update_run(identity, status="RUNNING")
            self._run_id = identity
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ince")
        found: Any = self._client.get_experiment_by_name(name)
        experiment: str = (
            self._client.create_experiment(name, artifact_location=self._artifacts())
            if found is None
            else found.experiment_id
        )
        run: Any = self._client.create_run(experiment, run_name=self._context.run_name)
        self._run_id = str(run.info.run_id)
        self._context.keep_id("mlflow", self._run_id)
        entities: Any = importlib.import_module("mlflow.entities")
        params = [
            entities.Param(key, str(value)[:_MAX_VALUE_CHARACTERS]) for key, value in _flat(config)
        ]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_PARAMS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One request for all of a step."""
        import time

        entities: Any = importlib.import_module("mlflow.entities")
        now = int(time.time() * 1000)
        batch = [entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=batch)

    def finish(self, status: str, /) -> None:
        """Set how the run ended."""
        if self._run_id:
            self._client.set_terminated(self._run_id, status=_STATUS[status])

    def _local(self) -> bool:
        return "MLFLOW_TRACKING_URI" not in os.environ

    def _uri(self) -> str:
        if not self._local():
            return os.environ["MLFLOW_TRACKING_URI"]
        folder = self._context.folder / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder.absolute() / 'mlflow.db'}"

    def _artifacts(self) -> str | None:
        # Without one, MLflow makes a folder where the command was given.
        folder = self._context.folder / "mlflow" / "artifacts"
        return folder.absolute().as_uri() if self._local() else None


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, object]", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value
