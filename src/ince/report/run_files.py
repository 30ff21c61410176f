"""The four files of a run folder, read as far as they go.

``run.json``, ``log.jsonl``, ``eval.json`` and ``samples.jsonl`` (schema: `ince.record`).
A run may have been cut off anywhere, so a missing file, a torn last line or a damaged one
is a note beside the rest, never a failure.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ince.errors import CorruptFileError, InputError
from ince.files import read_json
from ince.report.events import Event, event_of
from ince.report.loose import boolean, mapping, number, sequence, shown_value, text

__all__ = ["Answer", "Curve", "RunFiles", "Sample", "read_run_files"]

_FILES = ("run.json", "log.jsonl", "eval.json", "samples.jsonl")
_CURVES = ("loss", "eval_loss", "lr", "grad_norm", "tokens_per_second", "peak_bytes")

# A line of a log is some hundred bytes; one of many megabytes is damage, not data.
_MAX_LINE_BYTES = 16 * 2**20
_MAX_ANSWERS = 200
_MAX_EVENTS = 2_000
# Beyond this a value is as good as infinite, and differences of values might be.
_MAX_DRAWN = 1e100
_NOT_WRITTEN = "not written"


@dataclass
class Curve:
    """One quantity of the log by step: finite values only, in order of step."""

    steps: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    num_not_finite: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: float, value: object) -> None:
        """Append `value`; what is not a finite number is counted instead."""
        found = number(value)
        if found is None or abs(found) > _MAX_DRAWN:
            self.num_not_finite += 1
            return
        self.steps.append(step)
        self.values.append(found)

    def in_order(self) -> "Curve":
        """Sorted by step; of a step written twice (a resumed run) the later line counts."""
        if all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            return self
        latest = dict(zip(self.steps, self.values, strict=True))
        steps = sorted(latest)
        return Curve(array("d", steps), array("d", (latest[s] for s in steps)), self.num_not_finite)


@dataclass(frozen=True)
class Sample:
    """One row of ``samples.jsonl``; texts are safe to show, right or wrong may be unknown."""

    task: str
    prompt: str
    expected: str
    base: str
    tuned: str
    base_right: bool | None
    tuned_right: bool | None


@dataclass(frozen=True)
class Answer:
    """What the model answered at one step of the training."""

    step: float
    prompt: str
    expected: str
    output: str


@dataclass(frozen=True)
class RunFiles:
    """What was found in a run folder.

    `events` are the first ones, `num_more_events` those beyond; `notes` says what was missing
    or damaged.
    """

    folder: Path
    record: Mapping[str, object]
    evaluation: Mapping[str, object]
    curves: Mapping[str, Curve]
    answers: Sequence[Answer]
    samples: Sequence[Sample]
    notes: Sequence[str]
    events: Sequence[Event] = ()
    num_more_events: int = 0


@dataclass
class _Log:
    """What a log holds."""

    curves: dict[str, Curve]
    answers: list[Answer] = field(default_factory=list[Answer])
    events: list[Event] = field(default_factory=list[Event])
    num_more_events: int = 0


def _objects(path: Path, notes: list[str]) -> Iterator[Mapping[str, object]]:
    """The JSON objects of a file, a line each; lines that are none are counted in a note.

    A last line without its line break is a write that was cut off. It is used if it is
    whole, and passed over in silence if it is not: that is what a killed run leaves.
    """
    num_bad = 0
    try:
        with path.open("rb") as stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                is_whole = line.endswith(b"\n")
                if not is_whole and len(line) == _MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(_MAX_LINE_BYTES)
                    num_bad += 1
                    continue
                if not line.strip():
                    continue
                try:
                    value = json.loads(line.decode("utf-8", errors="replace"))
                except (ValueError, RecursionError):
                    num_bad += is_whole
                    continue
                if isinstance(value, dict):
                    yield value
                else:
                    num_bad += 1
    except FileNotFoundError:
        notes.append(f"{path.name}: {_NOT_WRITTEN}.")
    except OSError as error:
        notes.append(f"{path.name}: cannot be read ({error.strerror}).")
    if num_bad:
        lines = "line is" if num_bad == 1 else "lines are"
        notes.append(f"{path.name}: {num_bad:,} {lines} not a JSON object and left out.")


def _object(path: Path, notes: list[str]) -> Mapping[str, object]:
    try:
        return read_json(path)
    except InputError:
        notes.append(f"{path.name}: {_NOT_WRITTEN}.")
    except (CorruptFileError, RecursionError):
        notes.append(f"{path.name}: damaged, not readable as JSON.")
    except OSError as error:
        notes.append(f"{path.name}: cannot be read ({error.strerror}).")
    return {}


def _read_log(path: Path, notes: list[str]) -> _Log:
    log = _Log({name: Curve() for name in _CURVES})
    for line in _objects(path, notes):
        step = number(line.get("step"))
        if step is None or abs(step) > _MAX_DRAWN:
            continue
        for name in _CURVES:
            if name in line:
                log.curves[name].add(step, line[name])
        if (event := event_of(step, line)) is not None:
            if len(log.events) < _MAX_EVENTS:
                log.events.append(event)
            else:
                log.num_more_events += 1
        for item in sequence(line.get("samples")):
            if len(log.answers) < _MAX_ANSWERS:
                answer = mapping(item)
                log.answers.append(
                    Answer(
                        step,
                        *(
                            shown_value(answer.get(key, ""))
                            for key in ("prompt", "expected", "output")
                        ),
                    )
                )
    log.curves = {name: curve.in_order() for name, curve in log.curves.items()}
    return log


def _read_samples(path: Path, notes: list[str]) -> list[Sample]:
    samples: list[Sample] = []
    for line in _objects(path, notes):
        prompt, expected, base, tuned = (
            text(line.get(key)) or "" for key in ("prompt", "expected", "base", "tuned")
        )
        samples.append(
            Sample(
                task=text(line.get("task"), limit=80) or "",
                prompt=prompt,
                expected=expected,
                base=base,
                tuned=tuned,
                base_right=boolean(line.get("base_right")),
                tuned_right=boolean(line.get("tuned_right")),
            )
        )
    return samples


def read_run_files(folder: Path) -> RunFiles:
    """Read what there is in the run folder `folder`.

    Raises:
        InputError: no such folder, or none of a run's files is in it.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in _FILES):
        raise InputError(
            "not a run folder",
            where=folder,
            expected="a folder that holds " + ", ".join(_FILES[:-1]) + f" or {_FILES[-1]}",
            do="give the output folder of a run",
        )
    notes: list[str] = []
    record = _object(folder / "run.json", notes)
    recorded = mapping(record.get("evaluation"))
    # The record repeats eval.json, so a missing eval.json loses nothing then.
    evaluation = _object(folder / "eval.json", [] if recorded else notes) or recorded
    log = _read_log(folder / "log.jsonl", notes)
    samples = _read_samples(folder / "samples.jsonl", notes)
    for name, curve in log.curves.items():
        if curve.num_not_finite:
            notes.append(
                f"log.jsonl: {curve.num_not_finite:,} values of {name} are not finite numbers "
                "and not drawn."
            )
    return RunFiles(
        folder=folder,
        record=record,
        evaluation=evaluation,
        curves=log.curves,
        answers=log.answers,
        samples=samples,
        notes=notes,
        events=log.events,
        num_more_events=log.num_more_events,
    )
