"""`find_lr`: the learning-rate range test of a recipe, by the very steps that its run would take.

Model, adapter, data, batches and optimizer are the recipe's; the rates alone are the test's. It
trains in a temporary folder, so the run's own folder is neither read nor written.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from ince.errors import InputError, InterruptedRunError, TrainingError
from ince.recipe import Recipe
from ince.recipe.session import Session, open_run
from ince.record import hardware, peak_memory_bytes, versions
from ince.search.lr_range import RangeTest, Suggestion, suggest
from ince.search.plan import planned_steps
from ince.search.progress import SearchProgress
from ince.train import StepReport

__all__ = ["LR_FIND_FORMAT", "find_lr"]

LR_FIND_FORMAT = "ince-lr-find/1"

# A learning rate beyond this is a slip of the pen, and would end in overflow.
_MAX_RATE = 1e3


def _check(low: float, high: float, num_steps: int, stop_factor: float) -> None:
    if not 0 < low < high <= _MAX_RATE:
        raise InputError(
            "the rates do not make a range",
            got=f"from {low:g} to {high:g}",
            expected=f"above 0, the first below the second, and at most {_MAX_RATE:g}",
        )
    if num_steps < 10:
        raise InputError(
            "too few steps to see a curve", got=num_steps, expected="at least 10 steps"
        )
    if not stop_factor > 1:
        raise InputError(
            "every loss would count as diverged", got=f"{stop_factor:g}", expected="more than 1"
        )


class _EnoughError(Exception):
    """Ends the training when the test is over, before anything is measured or saved."""


class _Watcher:
    """Feeds the test with the losses of a training."""

    def __init__(self, test: RangeTest) -> None:
        self._test = test

    def started(self, first_step: int, num_steps: int) -> None:
        pass

    def stepped(self, report: StepReport) -> None:
        self._test.add(report.loss)
        if self._test.is_over:
            raise _EnoughError

    def evaluated(self, step: int, loss: float) -> None:
        pass

    def said(self, line: str) -> None:
        pass


def find_lr(
    recipe: Recipe,
    *,
    low: float = 1e-6,
    high: float = 1e-1,
    num_steps: int = 60,
    stop_factor: float = 4.0,
    console: Console,
    known: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train with rates that grow from `low` to `high`, and say which one to use.

    Args:
        recipe: of the run that the rate is for.
        low, high: rates of the first and the last step.
        num_steps: of the test; with as many batches of the recipe.
        stop_factor: it ends early when the smoothed loss is so many times its best.
        console: for progress.
        known: called with what is known when the test is stopped before its end.

    Returns:
        The content of ``lr_find.json``: ``points`` with step, lr, loss and smoothed loss,
        ``suggestion`` (None when the curve shows none, and ``why_none`` says why), how it ended,
        and what it was measured on.

    Raises:
        InputError: the range, the model or the data cannot be used.
        InterruptedRunError: Ctrl-C; `known` was called first.
    """
    _check(low, high, num_steps, stop_factor)
    test = RangeTest(low=low, high=high, num_steps=num_steps, stop_factor=stop_factor)
    started = time.monotonic()
    ended = "done"
    facts: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="ince-lr-find-") as folder:
            _train(recipe, test, Path(folder), console, facts)
    except TrainingError:
        # A loss that is not finite: later than any other sign, and as clear.
        if len(test.points) < 2:
            raise
        test.diverged = True
    except (InterruptedRunError, KeyboardInterrupt) as stop:
        ended = "interrupted"
        if known is not None:
            known(_content(recipe, test, ended, started, facts))
        raise InterruptedRunError(
            f"stopped after step {len(test.points)} of {num_steps} of the range test",
            do="run the same command again; a range test starts anew",
        ) from stop
    return _content(recipe, test, "diverged" if test.diverged else ended, started, facts)


def _train(
    recipe: Recipe, test: RangeTest, folder: Path, console: Console, facts: dict[str, Any]
) -> None:
    """Feed `test`, and `facts` with what it is measured on."""
    progress = SearchProgress(console)
    recipe = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"eval": None}),
            "train": recipe.train.model_copy(
                update={
                    "eval_every": None,
                    "save_every": None,
                    "sample_every": None,
                    "early_stopping": None,
                }
            ),
            "output": str(folder / "run"),
        }
    )
    record = open_run(recipe, resume=False)
    session = Session(recipe, record, console=console, progress=progress)
    once = recipe.train.model_copy(update={"epochs": 1.0, "max_steps": None})
    per_pass = planned_steps(recipe.model_copy(update={"train": once}), session.train_split)
    # Passes differ by a step or so, as each packs another order.
    num_passes = math.ceil(test.num_steps / per_pass) + 1
    enough = once.model_copy(update={"epochs": float(num_passes), "max_steps": test.num_steps})
    session.recipe = recipe.model_copy(update={"train": enough})
    facts |= {"base": record["base"], "adapter": record.get("adapter")}
    with progress.watched(_Watcher(test)), contextlib.suppress(_EnoughError):
        session.train(lr_at=test.rate)


def _content(
    recipe: Recipe, test: RangeTest, ended: str, started: float, facts: dict[str, Any]
) -> dict[str, Any]:
    found = suggest(test.points, is_whole=ended != "interrupted")
    return {
        "format": LR_FIND_FORMAT,
        "status": ended,
        "low": test.low,
        "high": test.high,
        "num_steps": test.num_steps,
        "stop_factor": test.stop_factor,
        "suggestion": asdict(found) if isinstance(found, Suggestion) else None,
        "why_none": found if isinstance(found, str) else None,
        "points": [asdict(point) for point in test.points],
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest(),
        **facts,
        "versions": versions(),
        "hardware": hardware(),
        "seconds": round(time.monotonic() - started, 3),
        "peak_bytes": peak_memory_bytes(),
    }
