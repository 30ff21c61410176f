"""What a person sees while settings are searched: the run's own bars, and little that repeats."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from ince.recipe.progress import RunProgress
from ince.train import Observer, StepReport

__all__ = ["SearchProgress"]


class SearchProgress(RunProgress):
    """The progress of many runs, one after the other, on one console."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._said: set[str] = set()
        self._watcher: Observer | None = None

    def say(self, line: str) -> None:
        """A line that stays. What one run said the next need not say again."""
        if line not in self._said:
            self._said.add(line)
            super().say(line)

    @contextmanager
    def watched(self, watcher: Observer) -> Iterator[None]:
        """While active, `watcher` is told, too, what trainings tell."""
        self._watcher = watcher
        try:
            yield
        finally:
            self._watcher = None

    @contextmanager
    def training(self) -> Iterator[Observer]:
        """Yield the observer of a training loop."""
        with super().training() as shown:
            yield shown if self._watcher is None else _Both(shown, self._watcher)


class _Both:
    """Tells two observers, the second after the first: what it raises ends the training."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._observers = (first, second)

    def started(self, first_step: int, num_steps: int) -> None:
        for each in self._observers:
            each.started(first_step, num_steps)

    def stepped(self, report: StepReport) -> None:
        for each in self._observers:
            each.stepped(report)

    def evaluated(self, step: int, loss: float) -> None:
        for each in self._observers:
            each.evaluated(step, loss)

    def said(self, line: str) -> None:
        for each in self._observers:
            each.said(line)
