"""What came out of a run: the headline, the scores with their bars, the proofs, the samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ince.report.differences import Piece, compare_answers
from ince.report.facts import evenly, in_percent
from ince.report.loose import boolean, mapping, number, sequence, text
from ince.report.run_files import Answer, RunFiles, Sample
from ince.report.scores import (
    Score,
    cost_sentence,
    gain_sentences,
    interval_ends,
    scale_ends,
)

__all__ = [
    "answers_by_prompt",
    "headline",
    "proofs",
    "sample_counts",
    "sample_views",
    "samples_in_turn",
    "score_groups",
]

_NUM_SAMPLES = 20
_ENDINGS = {
    "failed": "The run failed.",
    "interrupted": "The run was interrupted.",
    "running": "The run has not finished.",
}


@dataclass(frozen=True)
class _Interval:
    """Geometry of one interval bar: percent of its width, better to the right of `zero`."""

    zero: str
    low: str
    high: str
    at: str


@dataclass(frozen=True)
class _SampleView:
    """One sample, its two answers in pieces."""

    sample: Sample
    base: Sequence[Piece]
    tuned: Sequence[Piece]


def headline(run: RunFiles, scores: Sequence[Score]) -> tuple[str, str]:
    """The sentence on top, and the one beneath it that says what it cost."""
    gains = gain_sentences(scores)
    if gains:
        return " ".join(gains), cost_sentence(scores) or ""
    training = mapping(run.record.get("training"))
    first, last = number(training.get("first_loss")), number(training.get("final_loss"))
    curve = run.curves["loss"]
    if (first is None or last is None) and len(curve) > 1:
        first, last = curve.values[0], curve.values[-1]
    sentences = ["Nothing was measured against the base model."]
    if first is not None and last is not None:
        verb = "fell" if last < first else "rose"
        sentences.insert(0, f"Training loss {verb} from {first:.3f} to {last:.3f}.")
    ending = _ENDINGS.get(text(run.record.get("status")) or "")
    if ending is not None:
        sentences.insert(0, ending)
    return sentences[0], " ".join(sentences[1:])


def _interval(score: Score, among: Sequence[Score]) -> _Interval | None:
    """The bar of one score; zero stands at one place in all bars of a table."""
    own = interval_ends(score, among)
    if own is None:
        return None
    bottom, top = scale_ends(among)

    def at(value: float) -> str:
        return in_percent(4 + 92 * (value - bottom) / (top - bottom))

    low, middle, high = own
    return _Interval(at(0.0), at(low), at(high), at(middle))


def score_groups(scores: Sequence[Score]) -> list[dict[str, object]]:
    """Scores by group, in order of appearance, each with its interval bar."""
    names = list(dict.fromkeys(score.group for score in scores))
    groups: list[dict[str, object]] = []
    for name in names:
        rows = [score for score in scores if score.group == name]
        # A heading that every label repeats says nothing.
        is_said = all(row.label.casefold().startswith(name.casefold()) for row in rows)
        groups.append(
            {
                "heading": "" if is_said or len(names) == 1 else name.replace("_", " "),
                "rows": [{"score": row, "interval": _interval(row, scores)} for row in rows],
            }
        )
    return groups


def _measured(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.4g}%" if unit == "%" else f"{value:.4g} {unit}".rstrip()


def proofs(record: Mapping[str, object]) -> list[dict[str, object]]:
    """The proofs of the record as badges: name, value and limit in words, and whether it holds."""
    found: list[dict[str, object]] = []
    for item in sequence(record.get("proofs")):
        proof = mapping(item)
        name = text(proof.get("name"), limit=120)
        if name is None:
            continue
        value, limit = number(proof.get("value")), number(proof.get("limit"))
        unit = text(proof.get("unit"), limit=40) or ""
        found.append(
            {
                "name": (name[0].upper() + name[1:]).replace("_", " "),
                "value": _measured(value, unit) or "no value",
                "limit": _measured(limit, unit if unit == "%" else ""),
                "holds": boolean(proof.get("holds")),
                "detail": text(proof.get("detail"), limit=400) or "",
            }
        )
    return found


def samples_in_turn(samples: Sequence[Sample], at_most: int) -> list[Sample]:
    """The first samples of every task in turn; never chosen by how well they went."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    chosen: list[Sample] = []
    for place in range(max((len(group) for group in by_task.values()), default=0)):
        chosen += [group[place] for group in by_task.values() if place < len(group)]
        if len(chosen) >= at_most:
            break
    chosen = chosen[:at_most]
    return [sample for task in by_task for sample in chosen if sample.task == task]


def sample_views(samples: Sequence[Sample]) -> list[_SampleView]:
    """The samples to show, with their differences marked."""
    return [
        _SampleView(sample, *compare_answers(sample.expected, sample.base, sample.tuned))
        for sample in samples_in_turn(samples, _NUM_SAMPLES)
    ]


def sample_counts(samples: Sequence[Sample]) -> list[str]:
    """By task: ``inflection: 0 right before, 66 after, of 100``."""
    total, base, tuned = Counter[str](), Counter[str](), Counter[str]()
    for sample in samples:
        if sample.base_right is None or sample.tuned_right is None:
            continue
        total[sample.task] += 1
        base[sample.task] += sample.base_right
        tuned[sample.task] += sample.tuned_right
    return [
        f"{(task or 'all').replace('_', ' ')}: {base[task]} right before, {tuned[task]} after, "
        f"of {num}"
        for task, num in total.items()
    ]


def answers_by_prompt(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """Answers while training, by prompt: the same question again and again."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    return [
        {"prompt": prompt, "expected": given[0].expected, "given": evenly(given, 6)}
        for prompt, given in list(by_prompt.items())[:4]
    ]
