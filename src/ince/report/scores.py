"""The scores of a run: base against tuned, each with its interval, its verdict and its words.

A score is called a gain or a loss only when its interval excludes no change; everything
else is said to be unclear. This is where that is decided, for the page and the terminal alike.

Units: a score in ``fraction`` (of rows, of words) is shown as a percentage; ``%`` is one
already; any other unit is shown as it stands.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ince.report.loose import boolean, mapping, number, sequence, text, whole

__all__ = [
    "ENGLISH",
    "Score",
    "Verdict",
    "confidence_percent",
    "cost_sentence",
    "gain_sentences",
    "interval_ends",
    "read_scores",
    "scale_ends",
]

Verdict = Literal["better", "worse", "unclear", "changed", "unknown"]

# The group of metrics that measure what was forgotten rather than what was learned.
ENGLISH = "english"

_FRACTIONS = {"fraction", "ratio", "share", "accuracy", "proportion"}
_PERCENTAGES = {"%", "percent"}

_VERDICT_WORDS: dict[Verdict, str] = {
    "better": "▲ better",
    "worse": "▼ worse",
    "unclear": "≈ unclear",
    "changed": "◆ changed",
    "unknown": "no interval",
}


@dataclass(frozen=True)
class Score:
    """One metric of an evaluation, in the unit it is shown in.

    `difference`, `low` and `high` are tuned minus base and its interval. A part that was
    not measured is None.
    """

    name: str
    label: str
    group: str
    unit: str
    higher_is_better: bool | None
    base: float | None
    tuned: float | None
    echo: float | None
    difference: float | None
    low: float | None
    high: float | None
    num_rows: int | None

    @property
    def is_percentage(self) -> bool:
        """Whether values are shown with a percent sign, and differences in points."""
        return self.unit == "%"

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to be said."""
        if self.low is None or self.high is None:
            return "unknown"
        if self.low <= 0 <= self.high:
            return "unclear"
        if self.higher_is_better is None:
            return "changed"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"

    @property
    def verdict_words(self) -> str:
        """The verdict with its sign, so that it reads without color."""
        return _VERDICT_WORDS[self.verdict]

    @property
    def direction(self) -> str:
        """Which way is better, in words; empty when the file does not say."""
        if self.higher_is_better is None:
            return ""
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def relative(self) -> float | None:
        """The difference as a share of the base, or None where that means nothing."""
        if self.difference is None or not self.base:
            return None
        return self.difference / abs(self.base)

    @property
    def _decimals(self) -> int:
        known = [abs(v) for v in (self.base, self.tuned, self.echo, self.difference) if v]
        largest = max(known, default=0.0)
        if self.is_percentage or largest >= 10:
            return 1
        if largest >= 0.1 or largest == 0:
            return 3
        return min(12, 2 - math.floor(math.log10(largest)))

    def _plain(self, value: float) -> str:
        return f"{value:,.{self._decimals}f}" if abs(value) < 1e9 else f"{value:.3g}"

    def shown(self, value: float | None) -> str:
        """`value` of this score as it stands in a table; an absent one is a dash."""
        if value is None:
            return "–"
        return self._plain(value).replace("-", "−") + ("%" if self.is_percentage else "")

    def shown_change(self, value: float | None) -> str:
        """A difference or one end of its interval, with its sign."""
        if value is None:
            return "–"
        digits = self._plain(abs(value))
        if not any(digit in "123456789" for digit in digits):
            return digits
        return ("+" if value > 0 else "−") + digits

    def shown_interval(self) -> str:
        """``+59.5 to +73.0``, or nothing when there is no interval."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.shown_change(self.low)} to {self.shown_change(self.high)}"


def _read_score(value: Mapping[str, object]) -> Score | None:
    name = text(value.get("name"), limit=80)
    label = text(value.get("label"), limit=120)
    if name is None and label is None:
        return None
    unit = text(value.get("unit"), limit=40) or ""
    is_fraction = unit.lower() in _FRACTIONS
    parts = ("base", "tuned", "echo", "difference", "low", "high")
    found = {key: number(value.get(key)) for key in parts}
    if found["difference"] is None and found["base"] is not None and found["tuned"] is not None:
        found["difference"] = found["tuned"] - found["base"]
    low, high = found["low"], found["high"]
    if low is not None and high is not None and low > high:
        found["low"], found["high"] = high, low
    if is_fraction:
        found = {key: None if v is None else 100 * v for key, v in found.items()}
    return Score(
        name=name or label or "",
        label=label or (name or "").replace("_", " "),
        group=text(value.get("group"), limit=80) or "",
        unit="%" if is_fraction or unit.lower() in _PERCENTAGES else unit,
        higher_is_better=boolean(value.get("higher_is_better")),
        num_rows=whole(value.get("num_rows")),
        **found,
    )


def read_scores(evaluation: Mapping[str, object]) -> list[Score]:
    """The metrics of an ``eval.json``, in its order; what is not a metric is passed over."""
    read = (_read_score(mapping(item)) for item in sequence(evaluation.get("metrics")))
    return [score for score in read if score is not None]


def confidence_percent(evaluation: Mapping[str, object]) -> str:
    """``95%``: how sure the intervals are; just ``""`` when the file does not say."""
    confidence = number(evaluation.get("confidence"))
    return f"{100 * confidence:g}%" if confidence is not None and 0 < confidence < 1 else ""


def _reach(score: Score, among: Sequence[Score]) -> float:
    """How far the differences of this score's unit go from zero.

    Scores of one unit share a scale, so that their intervals can be compared by eye.
    """
    ends = [
        abs(end)
        for other in among
        if other.unit == score.unit
        for end in (other.difference, other.low, other.high)
        if end is not None
    ]
    return max(ends, default=0.0) or 1.0


def interval_ends(score: Score, among: Sequence[Score]) -> tuple[float, float, float] | None:
    """Low end, difference and high end in [-1, 1], better upward; None without an interval."""
    if score.low is None or score.high is None or score.difference is None:
        return None
    scale = _reach(score, among)
    sign = -1.0 if score.higher_is_better is False else 1.0
    low, high = sorted((sign * score.low / scale, sign * score.high / scale))
    return low, sign * score.difference / scale, high


def scale_ends(among: Sequence[Score]) -> tuple[float, float]:
    """Bottom and top of the scale that the bars of one table share; zero is inside."""
    every = [end for score in among for end in interval_ends(score, among) or ()]
    bottom, top = min([0.0, *every]), max([0.0, *every])
    return (bottom, top) if bottom < top else (-1.0, 1.0)


def _spoken(label: str) -> str:
    """A label as the subject of a sentence: ``inflection: exact match`` loses its colon."""
    words = re.sub(r"[:,]\s+", " ", label)
    return words[:1].upper() + words[1:]


def _change_words(score: Score) -> str:
    rose = (score.difference or 0.0) > 0
    return (
        f"{_spoken(score.label)} {'rose' if rose else 'fell'} from {score.shown(score.base)} "
        f"to {score.shown(score.tuned)}"
    )


def gain_sentences(scores: Sequence[Score], *, at_most: int = 2) -> list[str]:
    """What was gained, a sentence each: one score of every task first, most certain only.

    When nothing was gained the one sentence says so; no scores, no sentences.
    """
    learned = [s for s in scores if s.group.casefold() != ENGLISH and s.difference is not None]
    if not learned:
        return []
    gains = [s for s in learned if s.verdict == "better"]
    if not gains:
        worse = [s for s in learned if s.verdict == "worse"]
        if worse:
            return ["Nothing was gained.", *(_change_words(s) + "." for s in worse[: at_most - 1])]
        return ["No gain can be told from chance."]
    first_of_group = {s.group: s for s in reversed(gains)}
    leading = [s for s in gains if first_of_group[s.group] is s]
    ranked = leading + [s for s in gains if s not in leading]
    return [_change_words(s) + "." for s in ranked[:at_most]]


def cost_sentence(scores: Sequence[Score]) -> str | None:
    """What English paid, or None when it was not measured. The worst of its scores speaks."""
    english = [
        score
        for score in scores
        if score.group.casefold() == ENGLISH and score.base is not None and score.tuned is not None
    ]
    if not english:
        return None

    def loss(score: Score) -> float:
        share = score.relative if score.relative is not None else (score.difference or 0.0)
        return -share if score.higher_is_better else share

    worst = max(english, key=loss)
    label = re.sub(r"^English[\s,:]+", "", worst.label)
    values = f"{label} {worst.shown(worst.base)} before, {worst.shown(worst.tuned)} after"
    if worst.verdict == "unclear":
        return f"English lost nothing that can be told from chance: {values}."
    if worst.verdict == "better":
        return f"English lost nothing: {values}."
    if worst.relative is not None:
        if loss(worst) <= 0:
            return f"English lost nothing: {values}."
        return f"English lost {100 * abs(worst.relative):.1f}%: {values}."
    return f"English: {values}."
