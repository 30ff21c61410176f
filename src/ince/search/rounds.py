"""`run_rounds`: successive halving over candidates, each a run that can be gone on with.

It trains every candidate to its rung through one function, and writes down what came back
before it goes on, so that a sweep that was killed continues where it was. What training is,
it does not know.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ince.errors import DiskFullError, InceError, InterruptedRunError, TrainingError
from ince.files import write_text
from ince.search.grid import Candidate
from ince.search.halving import Rung, survivors
from ince.search.sweep_state import SweepState
from ince.units import format_seconds

__all__ = ["Outcome", "TrainTo", "run_rounds"]

# A candidate that was begun so often and never came back takes the process with it.
_MAX_STARTS = 3


@dataclass(frozen=True)
class Outcome:
    """What training a candidate to a step gave.

    Attributes:
        loss: held-out, in nats a target.
        steps: of all its sittings, as are `seconds` and `tokens_per_second`.
        train_loss: of the last step.
        peak_bytes: the most memory this sitting has held.
    """

    loss: float
    steps: int
    train_loss: float
    tokens_per_second: float
    seconds: float
    peak_bytes: int


TrainTo = Callable[[Candidate, int], Outcome]
"""Trains a candidate, from where it is, to a step of its plan."""


def run_rounds(
    candidates: Sequence[Candidate],
    state: SweepState,
    train_to: TrainTo,
    *,
    say: Callable[[str], None],
) -> None:
    """Train all candidates to the first rung, the better ones on, and name the best in `state`.

    A candidate that fails is recorded, and the others go on.

    Args:
        candidates: in the order of `state`.
        state: new, or of a sweep that was cut off.
        train_to: trains a candidate to a step of its plan.
        say: called with a line for each candidate begun and done.

    Raises:
        InterruptedRunError: stopped; the same sweep goes on later.
        DiskFullError: no space; likewise.
        TrainingError: every candidate failed.
    """
    rungs = [
        Rung(Fraction(*each["share"]), each["num_candidates"]) for each in state.content["rungs"]
    ]
    pace = _Pace(state, rungs)
    contenders = [*range(len(candidates))]
    state.content["status"] = "running"
    try:
        for level, rung in enumerate(rungs):
            if level > 0:
                contenders = _cut(state, contenders, level, rung)
            for place, number in enumerate(contenders, start=1):
                entry = state.candidates[number]
                if entry["status"] == "failed" or len(entry["losses"]) > level:
                    continue
                end = rung.steps(entry["num_steps"])
                say(
                    f"rung {level + 1} of {len(rungs)}, {place} of {len(contenders)}: "
                    f"{entry['name']}, to step {end} of {entry['num_steps']}{pace.words()}"
                )
                begun = entry["steps"]
                _train(candidates[number], entry, end, state, train_to)
                if entry["status"] != "failed" and len(entry["losses"]) == len(rungs):
                    entry["status"] = "done"
                pace.add(entry["steps"] - begun)
                state.save()
                say(_what_came_of(entry))
    except (InterruptedRunError, KeyboardInterrupt) as stop:
        state.content["status"] = "interrupted"
        state.save()
        raise InterruptedRunError(
            "the sweep was stopped",
            where=state.path.parent,
            do="run the same command again to go on",
        ) from stop
    _finish(candidates, state, len(rungs))


def _cut(state: SweepState, contenders: Sequence[int], level: int, rung: Rung) -> list[int]:
    """Who goes on. It follows from the losses alone, so a sweep that goes on cuts likewise."""
    losses = {
        number: state.candidates[number]["losses"][level - 1]
        for number in contenders
        if len(state.candidates[number]["losses"]) >= level
    }
    chosen = survivors(losses, rung)
    for number in losses:
        if number not in chosen and state.candidates[number]["status"] != "failed":
            state.candidates[number]["status"] = "stopped"
    state.save()
    return chosen


def _train(
    candidate: Candidate, entry: dict[str, Any], end: int, state: SweepState, train_to: TrainTo
) -> None:
    if entry["starts"] >= _MAX_STARTS:
        _fail(
            entry,
            "OutOfMemory",
            f"the process ended {_MAX_STARTS} times while this one trained; it may need more "
            "memory than there is",
        )
        return
    entry["status"] = "going on"
    entry["starts"] += 1
    state.save()
    try:
        outcome = train_to(candidate, end)
    except (InterruptedRunError, KeyboardInterrupt, DiskFullError):
        entry["starts"] = 0
        raise
    except InceError as error:
        _fail(entry, type(error).__name__, error.what, error.got)
        return
    except Exception as error:  # out of memory has a class of its own in every library
        _fail(entry, type(error).__name__, str(error).partition("\n")[0])
        return
    entry["starts"] = 0
    entry["steps"] = outcome.steps
    entry["train_loss"] = outcome.train_loss if math.isfinite(outcome.train_loss) else None
    entry["tokens_per_second"] = round(outcome.tokens_per_second, 2)
    entry["seconds"] = round(outcome.seconds, 3)
    entry["peak_bytes"] = max(entry["peak_bytes"] or 0, outcome.peak_bytes)
    if math.isfinite(outcome.loss):
        entry["losses"].append(outcome.loss)
    else:
        _fail(entry, "TrainingError", "the held-out loss is not finite", str(outcome.loss))


def _fail(entry: dict[str, Any], kind: str, what: str, got: str | None = None) -> None:
    entry["status"] = "failed"
    entry["error"] = {"type": kind, "what": what[:500], "got": got}


def _what_came_of(entry: dict[str, Any]) -> str:
    if entry["status"] == "failed":
        return f"  {entry['name']} failed: {entry['error']['what']}"
    return f"  held-out loss {entry['losses'][-1]:.4f} after step {entry['steps']}"


def _finish(candidates: Sequence[Candidate], state: SweepState, num_rungs: int) -> None:
    """Name the best and write its recipe: of those that came farthest, that of least loss."""
    entries = state.candidates
    farthest = max(len(entry["losses"]) for entry in entries)
    if farthest == 0:
        state.content["status"] = "failed"
        state.save()
        first = entries[0]["error"] or {}
        raise TrainingError(
            "every candidate of the sweep failed",
            where=state.path.parent,
            got=f"{entries[0]['name']}: {first.get('what')}",
            do="train one of them alone to see more: "
            f"ince train {state.path.parent / entries[0]['name']}",
        )
    reached = {
        number: entry["losses"][-1]
        for number, entry in enumerate(entries)
        if len(entry["losses"]) == farthest
    }
    best = min(reached, key=lambda number: (reached[number], number))
    if farthest < num_rungs:
        remark = "no candidate was trained to the end: those that should have been failed"
        if remark not in state.content["remarks"]:
            state.content["remarks"].append(remark)
    write_text(state.path.parent / "best.yaml", candidates[best].recipe.to_yaml())
    state.content["best"] = entries[best]["name"]
    state.content["status"] = "done"
    state.save()


class _Pace:
    """How much of the sweep is done, and about how long the rest will take."""

    def __init__(self, state: SweepState, rungs: Sequence[Rung]) -> None:
        longest = max(entry["num_steps"] for entry in state.candidates)
        before = 0
        self._total = 0
        for rung in rungs:
            self._total += rung.num_candidates * (rung.steps(longest) - before)
            before = rung.steps(longest)
        self._done = sum(entry["steps"] for entry in state.candidates)
        self._done_here = 0
        self._started = time.monotonic()

    def add(self, num_steps: int) -> None:
        """So many steps more are done."""
        self._done += num_steps
        self._done_here += num_steps

    def words(self) -> str:
        """For the end of a line; empty while nothing is known."""
        if self._done_here <= 0:
            return ""
        each = (time.monotonic() - self._started) / self._done_here
        rest = max(0, self._total - self._done)
        share = min(99, 100 * self._done // max(1, self._total))
        return f" ({share}% done, about {format_seconds(rest * each)} left)"
