"""What a person sees while a run happens: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ince.train import Observer, StepReport
from ince.units import format_bytes

__all__ = ["RunProgress"]

Report = Callable[[str, int, int], None]

# Lines to a log file or a pipe: about this many for a run, whatever its length.
_NUM_PLAIN_LINES = 20

# Stages that count bytes; the others count steps, rows or layers.
_IN_BYTES = {"converting", "loading", "quantizing"}


class _Amount(ProgressColumn):
    """How much of how much."""

    def render(self, task: Task) -> Text:
        done, total = task.completed, task.total
        if total is None:
            return Text("")
        # One of one is a stage that cannot be told in parts.
        if task.description in _IN_BYTES and total > 1:
            return Text(f"{format_bytes(done)} of {format_bytes(total)}", style="progress.download")
        return Text(f"{done:.0f}/{total:.0f}", style="progress.download")


class RunProgress:
    """Progress of a run on one console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, markup=False, highlight=False)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            _Amount(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )

    @contextmanager
    def bars(self) -> Iterator[Report]:
        """Yield ``report(stage, done, total)``; a new stage begins a new bar."""
        with self._progress() as progress:
            tasks: dict[str, TaskID] = {}

            def report(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                progress.update(tasks[stage], completed=done, total=total)

            yield report

    @contextmanager
    def training(self) -> Iterator[Observer]:
        """Yield the observer of a training loop."""
        with self._progress() as progress:
            yield _TrainingObserver(self, progress, self._console.is_terminal)


class _TrainingObserver:
    def __init__(self, owner: RunProgress, progress: Progress, on_terminal: bool) -> None:
        self._owner = owner
        self._progress = progress
        self._on_terminal = on_terminal
        self._task: TaskID | None = None
        self._num_steps = 0

    def started(self, first_step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._task = self._progress.add_task("training", total=num_steps, completed=first_step)

    def stepped(self, report: StepReport) -> None:
        step = report.step
        line = (
            f"loss {report.loss:.3f}  {report.tokens_per_second:.0f} tokens/s  "
            f"{format_bytes(report.peak_bytes)}"
        )
        if self._task is not None:
            self._progress.update(self._task, completed=step, description=f"training  {line}")
        every = max(1, self._num_steps // _NUM_PLAIN_LINES)
        if not self._on_terminal and (step % every == 0 or step == self._num_steps):
            self._owner.say(f"step {step} of {self._num_steps}: {line}")

    def evaluated(self, step: int, loss: float) -> None:
        self._owner.say(f"step {step}: held-out loss {loss:.4f}")

    def said(self, line: str) -> None:
        self._owner.say(line)
