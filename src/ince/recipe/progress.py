"""What a person sees while a run happens: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
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

from ince.recipe.training_view import TrainingView
from ince.train import Observer, StepReport
from ince.units import format_bytes

__all__ = ["RunProgress"]

Report = Callable[[str, int, int], None]

# Lines to a log file or a pipe: about this many for a run, whatever its length.
_NUM_PLAIN_LINES = 20

_REFRESHES_PER_SECOND = 4

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
        view = TrainingView()
        if not self._console.is_terminal:
            yield _TrainingObserver(self, view, in_lines=True)
            return
        with Live(
            view, console=self._console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND
        ):
            yield _TrainingObserver(self, view, in_lines=False)


class _TrainingObserver:
    def __init__(self, owner: RunProgress, view: TrainingView, *, in_lines: bool) -> None:
        self._owner = owner
        self._view = view
        self._in_lines = in_lines

    def started(self, first_step: int, num_steps: int) -> None:
        self._view.started(first_step, num_steps)

    def stepped(self, report: StepReport) -> None:
        self._view.stepped(report)
        num_steps = self._view.num_steps
        every = max(1, num_steps // _NUM_PLAIN_LINES)
        if self._in_lines and (report.step % every == 0 or report.step == num_steps):
            self._owner.say(self._view.line())

    def evaluated(self, step: int, loss: float) -> None:
        best = ", the best so far" if self._view.evaluated(step, loss) else ""
        self._owner.say(f"step {step}: held-out loss {loss:.4f}{best}")

    def said(self, line: str) -> None:
        self._owner.say(line)
