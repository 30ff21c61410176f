import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ince.recipe.progress import RunProgress
from ince.recipe.training_view import TrainingView, flowed
from ince.train import StepReport


def report(step, **changes):
    values = {
        "step": step,
        "loss": 2.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "num_tokens": 1000,
        "num_targets": 250,
        "total_tokens": 1000 * step,
        "total_targets": 250 * step,
        "seconds": 2.0,
        "peak_bytes": 3 * 2**30,
        "held_bytes": 2**30,
    }
    return StepReport(**(values | changes))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def going(num_steps=100, done=10, **changes):
    clock = Clock()
    view = TrainingView(clock=clock)
    view.started(0, num_steps)
    for step in range(1, done + 1):
        clock.now += 3.0
        view.stepped(report(step, **changes))
    return view, clock


def drawn(view, width):
    """The lines as a live display has them, which crops what is too wide."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    lines = console.render_lines(view, console.options)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def test_it_says_what_matters():
    view, _ = going(num_skipped=2)
    view.evaluated(10, 1.75)
    text = "\n".join(drawn(view, 100))
    for words in (
        "10/100",
        "10%",
        "4:30 left",
        "loss 2.000",
        "held-out 1.750",
        "best 1.750 at step 10",
        "500 tokens/s",
        "125 targets/s",
        "1.00 GiB now",
        "3.00 GiB peak",
        "2 skipped",
    ):
        assert words in text


@pytest.mark.parametrize("width", [20, 30, 40, 55, 56, 80, 200])
def test_nothing_is_cut_or_folded_whatever_the_width(width):
    view, _ = going(num_steps=100_000, num_skipped=12)
    view.evaluated(10, 1.75)
    lines = drawn(view, width)
    assert all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    for words in ("10/100000", "left", "loss 2.000", "500 tokens/s", "3.00 GiB peak", "12 skipped"):
        assert words in text
    assert not any(line.endswith("…") for line in lines)


def test_a_wide_terminal_takes_three_lines():
    view, _ = going()
    view.evaluated(10, 1.75)
    assert len(drawn(view, 100)) == 3


def test_before_the_first_step_there_is_a_bar_alone():
    view = TrainingView()
    view.started(0, 50)
    assert len(drawn(view, 80)) == 1
    assert view.seconds_left() is None
    assert drawn(TrainingView(), 80)


def test_the_loss_is_smoothed_from_its_first_value_on_and_passes_over_what_is_none():
    view, _ = going(done=1, loss=4.0)
    assert view.loss == pytest.approx(4.0)
    view.stepped(report(2, loss=math.nan, skipped=True))
    assert view.loss == pytest.approx(4.0)
    for step in range(3, 60):
        view.stepped(report(step, loss=1.0))
    assert view.loss == pytest.approx(1.0, abs=0.02)


def test_time_left_counts_what_comes_between_steps_and_runs_down():
    view, clock = going(num_steps=20, done=10)
    assert view.seconds_left() == pytest.approx(30.0)
    clock.now += 2
    assert view.seconds_left() == pytest.approx(28.0)
    clock.now += 1000
    assert view.seconds_left() == 0


def test_a_resumed_run_knows_its_best():
    view = TrainingView()
    view.started(40, 100)
    view.stepped(report(41, best_step=30, best_loss=1.25))
    assert "best 1.250 at step 30" in view.line()
    assert not view.evaluated(41, 1.5)
    assert view.evaluated(42, 1.0)


@pytest.mark.parametrize("width", range(1, 40))
def test_fields_flow_into_lines_in_their_order(width):
    fields = [Text("abc"), Text("defgh"), Text("i"), Text("jklmnopqrstu"), Text("vw")]
    lines = flowed(fields, width)
    assert " ".join(" ".join(line.plain.split()) for line in lines) == "abc defgh i jklmnopqrstu vw"
    for line in lines:
        assert cell_len(line.plain) <= width or "   " not in line.plain


def test_where_no_terminal_is_it_is_some_twenty_lines():
    out = io.StringIO()
    with RunProgress(Console(file=out, width=300)).training() as observer:
        observer.started(0, 200)
        for step in range(1, 201):
            observer.stepped(report(step))
        observer.evaluated(200, 1.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("step 10 of 200: loss 2.000, 500 tokens/s, 125 targets/s")
    assert "left" in lines[0]
    assert "left" not in lines[-2]
    assert lines[-1] == "step 200: held-out loss 1.5000, the best so far"


def test_on_a_terminal_what_is_said_stays_above_the_picture():
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, force_interactive=True)
    with RunProgress(console).training() as observer:
        observer.started(0, 5)
        observer.stepped(report(1))
        observer.said("something to read")
    assert "something to read" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()
