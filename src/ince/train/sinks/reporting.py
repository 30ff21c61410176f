"""Report a run to sinks while it happens: an observer that passes on what it is told.

The run must not care: a sink that raises, or takes too long, is said once and dropped. Numbers
that are not finite are left out, since not every sink can hold them.
"""

import importlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ince.errors import InterruptedRunError
from ince.train.observer import Observer, StepReport
from ince.train.sinks.sink import Sink, SinkContext

__all__ = ["reporting"]

_CLASSES = {
    "tensorboard": "TensorBoardSink",
    "wandb": "WandbSink",
    "mlflow": "MlflowSink",
    "trackio": "TrackioSink",
}

_MAX_SECONDS = 30.0
"""A call that takes longer, a server that is away, would hold up a run at every step."""


@contextmanager
def reporting(
    observer: Observer,
    names: Sequence[str],
    *,
    run_dir: Path,
    config: Mapping[str, object],
) -> Iterator[Observer]:
    """Yield an observer that tells `observer` everything, and the sinks of `names` the numbers.

    Args:
        observer: is told first, and of sinks that fail.
        names: of `SINK_NAMES`; their packages are installed.
        run_dir: of the run; what sinks keep is in its folder ``sinks``.
        config: what the run is, plain JSON values fit to be seen by others.
    """
    context = SinkContext(run_dir.resolve().name or "run", run_dir / "sinks")
    reporter = _Reporter(observer, config)
    for name in dict.fromkeys(names):
        reporter.add(name, context)
    status = "done"
    try:
        yield reporter
    except (InterruptedRunError, KeyboardInterrupt):
        status = "interrupted"
        raise
    except BaseException:
        status = "failed"
        raise
    finally:
        reporter.finish(status)


class _Reporter:
    def __init__(self, observer: Observer, config: Mapping[str, object]) -> None:
        self._observer = observer
        self._config = config
        self._sinks: dict[str, Sink] = {}

    def add(self, name: str, context: SinkContext) -> None:
        try:
            module = importlib.import_module(f"ince.train.sinks.{name}")
            self._sinks[name] = getattr(module, _CLASSES[name])(context)
        except Exception as error:
            self._give_up(name, error)

    def started(self, first_step: int, num_steps: int) -> None:
        self._observer.started(first_step, num_steps)
        for name, sink in [*self._sinks.items()]:
            try:
                sink.start(self._config, first_step)
            except Exception as error:
                self._give_up(name, error)

    def stepped(self, report: StepReport) -> None:
        self._observer.stepped(report)
        self._log(
            report.step,
            {
                "train/loss": report.loss,
                "train/lr": report.lr,
                "train/grad_norm": report.grad_norm,
                "train/tokens": report.total_tokens,
                "train/target_tokens": report.total_targets,
                "train/tokens_per_second": report.tokens_per_second,
                "train/target_tokens_per_second": report.target_tokens_per_second,
                "train/peak_bytes": report.peak_bytes,
                "train/skipped_steps": report.num_skipped,
            },
        )

    def evaluated(self, step: int, loss: float) -> None:
        self._observer.evaluated(step, loss)
        self._log(step, {"eval/loss": loss})

    def said(self, line: str) -> None:
        self._observer.said(line)

    def finish(self, status: str) -> None:
        for name, sink in [*self._sinks.items()]:
            try:
                sink.finish(status)
            except Exception as error:
                self._give_up(name, error)
        self._sinks.clear()

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: float(v) for name, v in metrics.items() if math.isfinite(v)}
        for name, sink in [*self._sinks.items()]:
            started = time.monotonic()
            try:
                sink.log(step, finite)
            except Exception as error:
                self._give_up(name, error)
                continue
            seconds = time.monotonic() - started
            if seconds > _MAX_SECONDS:
                self._give_up(name, TimeoutError(f"a step took {seconds:.0f} s to report"))

    def _give_up(self, name: str, error: Exception) -> None:
        self._sinks.pop(name, None)
        said = " ".join(str(error).split())[:200] or type(error).__name__
        self._observer.said(f"no more is reported to {name}: {said}; log.jsonl has everything")
