"""What a person sees of a training run: a bar and the numbers that matter, or plain lines.

    training ━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━  141/280  50%  2:31 left
    loss 1.234   held-out 1.310, best 1.300 at step 100
    341 tokens/s   88 targets/s   1.90 GiB now   2.10 GiB peak   2 skipped

The loss is smoothed, speeds are those of the last steps, and the time left follows from what
steps have taken of late with all that comes between them. Numbers flow into as many lines as
the terminal's width asks for; none is cut.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ince.optim import PagesUsage
from ince.train import StepReport
from ince.units import format_bytes, format_count, format_seconds

__all__ = ["TrainingView", "flowed"]

_SMOOTHING = 0.9
_RECENT_STEPS = 20
_GAP = 3
_NARROW = 56
"""Columns below which the bar stands in a line of its own."""


class TrainingView:
    """The state of the picture; a renderable of rich."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.step = 0
        self.num_steps = 0
        self._loss_sum, self._loss_weight = 0.0, 0.0
        self._recent: deque[StepReport] = deque(maxlen=_RECENT_STEPS)
        self._times: deque[float] = deque(maxlen=_RECENT_STEPS + 1)
        self._held_out: float | None = None
        self._best: tuple[int, float] | None = None
        self._peak_bytes = 0

    # ---------------------------------------------------------------------------- what happens

    def started(self, first_step: int, num_steps: int) -> None:
        """Take in where the run begins."""
        self.step, self.num_steps = first_step, num_steps
        self._times.append(self._clock())

    def stepped(self, report: StepReport) -> None:
        """Take in a step."""
        self.step = report.step
        self._times.append(self._clock())
        self._recent.append(report)
        self._peak_bytes = max(self._peak_bytes, report.peak_bytes)
        if math.isfinite(report.loss):
            self._loss_sum = _SMOOTHING * self._loss_sum + (1 - _SMOOTHING) * report.loss
            self._loss_weight = _SMOOTHING * self._loss_weight + (1 - _SMOOTHING)
        if report.best_step is not None and report.best_loss is not None:
            self._best = report.best_step, report.best_loss

    def evaluated(self, step: int, loss: float) -> bool:
        """Take in a held-out loss; returns whether it is the lowest."""
        self._held_out = loss
        is_best = math.isfinite(loss) and (self._best is None or loss < self._best[1])
        if is_best:
            self._best = step, loss
        return is_best

    # ----------------------------------------------------------------------------- what is known

    @property
    def loss(self) -> float | None:
        """Smoothed; None before the first finite one."""
        return self._loss_sum / self._loss_weight if self._loss_weight else None

    def seconds_left(self) -> float | None:
        """Until the last step, at the pace of the last ones; None before there are two."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        since = self._clock() - self._times[-1]
        return max(0.0, pace * (self.num_steps - self.step) - since)

    def _rates(self) -> tuple[float, float]:
        seconds = sum(report.seconds for report in self._recent)
        tokens = sum(report.num_tokens for report in self._recent)
        targets = sum(report.num_targets for report in self._recent)
        return tokens / max(seconds, 1e-9), targets / max(seconds, 1e-9)

    def losses(self) -> list[Text]:
        """The losses, a field each."""
        fields: list[Text] = []
        if self.loss is not None:
            fields.append(_field("loss", f"{self.loss:.3f}"))
        if self._held_out is not None:
            fields.append(_field("held-out", f"{self._held_out:.3f}"))
        if self._best is not None:
            step, loss = self._best
            fields.append(_field("best", f"{loss:.3f}", f"at step {step}", style="green"))
        return fields

    def amounts(self) -> list[Text]:
        """Speeds, memory and what was skipped, a field each."""
        if not self._recent:
            return []
        tokens, targets = self._rates()
        last = self._recent[-1]
        fields = [
            _field("", format_count(tokens), "tokens/s"),
            _field("", format_count(targets), "targets/s"),
        ]
        if last.held_bytes:
            fields.append(_field("", format_bytes(last.held_bytes), "now"))
        fields.append(_field("", format_bytes(self._peak_bytes), "peak"))
        if last.pages is not None:
            fields += _pages(last.pages)
        if last.num_skipped:
            fields.append(_field("", str(last.num_skipped), "skipped", style="yellow"))
        return fields

    def line(self) -> str:
        """All of it in one line, for where no picture is drawn."""
        parts = [field.plain for field in (*self.losses(), *self.amounts())]
        left = self.seconds_left()
        if left is not None and self.step < self.num_steps:
            parts.append(f"{format_seconds(left)} left")
        return f"step {self.step} of {self.num_steps}: {', '.join(parts)}"

    # -------------------------------------------------------------------------- how it is drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The bar, then the numbers in as many lines as they take."""
        width = options.max_width
        left = self.seconds_left()
        percent = 100 * self.step / max(1, self.num_steps)
        figures = [
            Text(f"{self.step}/{self.num_steps}", style="progress.download"),
            Text(f"{percent:.0f}%", style="progress.percentage"),
            Text("" if left is None else f"{_clock_time(left)} left", style="progress.remaining"),
        ]
        figures = [figure for figure in figures if figure.plain]
        bar = ProgressBar(total=max(1, self.num_steps), completed=self.step)
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        if width >= _NARROW:
            row.add_column(no_wrap=True)
            row.add_column(ratio=1)
            for _ in figures:
                row.add_column(no_wrap=True, justify="right")
            row.add_row(Text("training"), bar, *figures)
            yield row
        else:
            row.add_row(bar)  # alone it would not end its line
            yield row
            yield from flowed([Text("training"), *figures], width)
        yield from flowed(self.losses(), width)
        yield from flowed(self.amounts(), width)


def _pages(pages: PagesUsage) -> list[Text]:
    """Where the optimizer's state is, and how long steps stood still for it."""
    tiers = {
        "on the device": pages.device_bytes,
        "in memory": pages.memory_bytes,
        "in a file": pages.file_bytes,
    }
    fields = [
        _field("state", format_bytes(num_bytes), where)
        for where, num_bytes in tiers.items()
        if num_bytes
    ]
    if pages.file_bytes:
        fields.append(_field("", format_seconds(pages.waited_seconds), "waited for it"))
    return fields


def _field(name: str, value: str, unit: str = "", *, style: str = "bold") -> Text:
    parts = [(name, "dim"), (value, style), (unit, "dim")]
    return Text(" ").join(Text(text, style=look) for text, look in parts if text)


def _clock_time(seconds: float) -> str:
    """``9:05``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def flowed(fields: Sequence[Text], width: int) -> list[Text]:
    """Lines of at most `width` cells, each with as many of the fields as it holds.

    A field wider than a line has one of its own, and is folded by who draws it.
    """
    lines: list[Text] = []
    for field in fields:
        if lines and cell_len(lines[-1].plain) + _GAP + cell_len(field.plain) <= width:
            lines[-1] = Text.assemble(lines[-1], " " * _GAP, field)
        else:
            lines.append(field.copy())
    return lines
