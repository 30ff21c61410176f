"""A sweep as a person reads it: candidates ranked, their curves, and what each value did.

Made from ``sweep.json`` and the logs of the candidates' runs, read as far as they go; the
terminal's table, the page and the picture all show this, so they never disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ince.errors import InputError
from ince.files import read_json
from ince.report.curves import smoothed, thinned
from ince.report.loose import mapping, number, sequence, shown, text, whole
from ince.report.run_files import Curve, read_run_files
from ince.units import format_bytes, format_count

__all__ = ["CandidateView", "Standing", "SweepView", "ValueView", "read_sweep", "view_sweep"]

Point = tuple[float, float]
Standing = Literal["best", "finalist", "stopped", "failed"]

_MAX_LABEL = 40


@dataclass(frozen=True)
class CandidateView:
    """A candidate: its place, its values, how far it came, and its curves by share or step."""

    rank: int
    name: str
    values: tuple[str, ...]
    standing: Standing
    rung: str
    steps: int
    num_steps: int
    loss: float | None
    first_loss: float | None
    train_loss: float | None
    speed: str
    peak: str
    words: str
    held_out: Sequence[Point]
    training: Sequence[Point]


@dataclass(frozen=True)
class ValueView:
    """One key: its values in order, each with the losses of its candidates at the first rung."""

    key: str
    values: Sequence[str]
    losses: Sequence[Sequence[float]]
    best: int | None
    """Index of the value that the best candidate has."""


@dataclass(frozen=True)
class SweepView:
    """Everything that is shown of a sweep."""

    name: str
    status: str
    keys: tuple[str, ...]
    candidates: Sequence[CandidateView]
    rungs: Sequence[tuple[str, int, int]]
    """What of the training each is, in words; how many should reach it; how many did."""
    by_value: Sequence[ValueView]
    x_label: str
    num_steps_trained: int
    num_steps_of_all: int
    remarks: Sequence[str]

    @property
    def best(self) -> CandidateView | None:
        """The best candidate of a sweep that is done."""
        return next((each for each in self.candidates if each.standing == "best"), None)


def read_sweep(folder: Path) -> SweepView:
    """The sweep in `folder`, with the curves of its candidates.

    Raises:
        InputError: `folder` holds no ``sweep.json``.
        CorruptFileError: it is not a JSON object.
    """
    content = read_json(Path(folder) / "sweep.json")
    return view_sweep(content, Path(folder))


def view_sweep(content: Mapping[str, object], folder: Path | None = None) -> SweepView:
    """The view of a sweep's state.

    Args:
        content: of a ``sweep.json``.
        folder: of the sweep; None leaves the curves out.
    """
    keys = tuple(text(key, limit=80) or "" for key in sequence(content.get("keys")))
    entries = [mapping(each) for each in sequence(content.get("candidates"))]
    num_rungs = len(sequence(content.get("rungs")))
    best = text(content.get("best")) if content.get("status") == "done" else None
    lengths = {whole(entry.get("num_steps")) for entry in entries}
    by_step = len(lengths) == 1
    ranked = sorted(entries, key=_merit)
    candidates = [
        _candidate(place, entry, keys, num_rungs, best, folder, by_step=by_step)
        for place, entry in enumerate(ranked, start=1)
    ]
    return SweepView(
        name=shown((folder or Path()).resolve().name, limit=120),
        status=text(content.get("status"), limit=40) or "unknown",
        keys=keys,
        candidates=candidates,
        rungs=_rungs(content, entries),
        by_value=_by_value(keys, candidates),
        x_label="step" if by_step else "% of its training",
        num_steps_trained=sum(each.steps for each in candidates),
        num_steps_of_all=sum(each.num_steps for each in candidates),
        remarks=[found for each in sequence(content.get("remarks")) if (found := text(each))],
    )


def _losses(entry: Mapping[str, object]) -> list[float]:
    found = (number(loss) for loss in sequence(entry.get("losses")))
    return [loss for loss in found if loss is not None]


def _merit(entry: Mapping[str, object]) -> tuple[int, float]:
    """Who came farther is better: a loss at another rung says nothing."""
    losses = _losses(entry)
    return -len(losses), losses[-1] if losses else 0.0


def _candidate(
    place: int,
    entry: Mapping[str, object],
    keys: Sequence[str],
    num_rungs: int,
    best: str | None,
    folder: Path | None,
    *,
    by_step: bool,
) -> CandidateView:
    name = text(entry.get("name"), limit=200) or f"candidate {place}"
    values = mapping(entry.get("values"))
    losses = _losses(entry)
    status = text(entry.get("status")) or "unknown"
    standing: Standing = "stopped"
    if status == "failed":
        standing = "failed"
    elif best is not None and name == best:
        standing = "best"
    elif losses and len(losses) == num_rungs:
        standing = "finalist"
    speed, peak = number(entry.get("tokens_per_second")), number(entry.get("peak_bytes"))
    num_steps = whole(entry.get("num_steps")) or 0
    held_out, training = _curves(folder, name, None if by_step else num_steps)
    return CandidateView(
        rank=place,
        name=name,
        values=tuple(_label(values.get(key)) for key in keys),
        standing=standing,
        rung=f"{len(losses)}/{num_rungs}",
        steps=whole(entry.get("steps")) or 0,
        num_steps=num_steps,
        loss=losses[-1] if losses else None,
        first_loss=losses[0] if losses else None,
        train_loss=number(entry.get("train_loss")),
        speed="–" if speed is None else format_count(speed),
        peak="–" if peak is None else format_bytes(peak),
        words=_words(status, standing, entry),
        held_out=held_out,
        training=training,
    )


def _label(value: object) -> str:
    return text(value, limit=_MAX_LABEL) or "“”"


def _words(status: str, standing: Standing, entry: Mapping[str, object]) -> str:
    if standing == "failed":
        what = text(mapping(entry.get("error")).get("what"), limit=160)
        return f"failed: {what}" if what else "failed"
    return {"best": "★ best", "finalist": "trained to the end"}.get(standing, status)


def _curves(
    folder: Path | None, name: str, num_steps: int | None
) -> tuple[list[Point], list[Point]]:
    """Held-out and training loss of a candidate, by step or by percent of `num_steps`."""
    # A name comes from a file: it may not lead out of the sweep's folder.
    if folder is None or Path(name).name != name:
        return [], []
    try:
        curves = read_run_files(folder / name).curves
    except InputError:
        return [], []
    factor = 1.0 if num_steps is None else 100.0 / max(1, num_steps)

    def scaled(points: list[Point]) -> list[Point]:
        return [(step * factor, value) for step, value in points]

    loss: Curve = curves["loss"]
    training = smoothed(loss) if len(loss) >= 8 else thinned(loss)
    return scaled(thinned(curves["eval_loss"], 60)), scaled(training)


def _rungs(
    content: Mapping[str, object], entries: Sequence[Mapping[str, object]]
) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    for level, item in enumerate(sequence(content.get("rungs"))):
        rung = mapping(item)
        share = [number(part) for part in sequence(rung.get("share"))]
        words = "?"
        if len(share) == 2 and share[0] is not None and share[1]:
            words = "all" if share[0] == share[1] else f"{share[0]:.0f}/{share[1]:.0f}"
        reached = sum(len(_losses(entry)) > level for entry in entries)
        found.append((words, whole(rung.get("num_candidates")) or 0, reached))
    return found


def _by_value(keys: Sequence[str], candidates: Sequence[CandidateView]) -> list[ValueView]:
    """At the first rung all candidates are alike: there the values can be compared."""
    views: list[ValueView] = []
    in_order = sorted(candidates, key=lambda each: each.name)
    for place, key in enumerate(keys):
        values = sorted({each.values[place] for each in in_order}, key=_by_number)
        losses = [
            sorted(
                each.first_loss
                for each in in_order
                if each.values[place] == value and each.first_loss is not None
            )
            for value in values
        ]
        winner = next((each.values[place] for each in candidates if each.standing == "best"), None)
        best = values.index(winner) if winner is not None else None
        if sum(map(len, losses)) > 1:
            views.append(ValueView(key, values, losses, best))
    return views


def _by_number(value: str) -> tuple[int, float, str]:
    """Numbers in their order, then the rest by letters."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
