"""A learning-rate range test as a person reads it: one drawing for terminal and picture, and words.

Both draw what `range_drawing` says, from the content of an ``lr_find.json``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ince.report.curves import nice_ticks
from ince.report.loose import mapping, number, sequence, text

__all__ = ["RangeDrawing", "range_drawing", "range_facts", "shown_rate"]

Point = tuple[float, float]


def shown_rate(rate: float) -> str:
    """``2.4e-4``: two digits are all that a range test knows."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


@dataclass(frozen=True)
class RangeDrawing:
    """What is drawn: x is the decimal logarithm of the rate, y the loss in nats."""

    losses: Sequence[Point]
    smoothed: Sequence[Point]
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    suggestion: Point | None
    steepest: Point | None
    minimum: Point | None


def range_drawing(content: Mapping[str, object]) -> RangeDrawing | None:
    """The drawing of a range test, or None when it has no two points."""
    losses: list[Point] = []
    smoothed: list[Point] = []
    for item in sequence(content.get("points")):
        point = mapping(item)
        lr, loss, mean = (number(point.get(key)) for key in ("lr", "loss", "smoothed"))
        if lr is not None and lr > 0 and loss is not None and mean is not None:
            losses.append((math.log10(lr), loss))
            smoothed.append((math.log10(lr), mean))
    if len(smoothed) < 2:
        return None
    low, high = number(content.get("low")), number(content.get("high"))
    left = math.log10(low) if low is not None and low > 0 else smoothed[0][0]
    right = math.log10(high) if high is not None and high > 0 else smoothed[-1][0]
    # What blew up is cut: the fall is what there is to see.
    means = [mean for _, mean in smoothed]
    least = min(means)
    before = max(means[: means.index(least) + 1])
    top = min(max(means), before + 0.4 * (before - least) + 0.05 * abs(before))
    lowest = min(loss for _, loss in losses)
    bottom = lowest - 0.03 * (top - lowest)
    if top <= bottom:
        bottom, top = bottom - 0.5, top + 0.5
    places = {
        key: _place(mapping(content.get("suggestion")).get(key), smoothed)
        for key in ("lr", "steepest", "minimum")
    }
    return RangeDrawing(
        losses=losses,
        smoothed=smoothed,
        x=(left, right),
        y=(bottom, top),
        x_ticks=[
            (float(power), f"1e{power}")
            for power in range(math.ceil(left - 1e-9), math.floor(right + 1e-9) + 1)
        ],
        y_ticks=[(tick, f"{tick:g}") for tick in nice_ticks(bottom, top, 5)],
        suggestion=places["lr"],
        steepest=places["steepest"],
        minimum=places["minimum"],
    )


def _place(value: object, smoothed: Sequence[Point]) -> Point | None:
    """A rate, at the height of the smoothed curve beside it."""
    rate = number(value)
    if rate is None or rate <= 0:
        return None
    x = math.log10(rate)
    return x, min(smoothed, key=lambda point: abs(point[0] - x))[1]


def range_facts(content: Mapping[str, object]) -> list[tuple[str, str]]:
    """The result in words: label and value."""
    suggestion = mapping(content.get("suggestion"))
    num_done, num_steps = len(sequence(content.get("points"))), number(content.get("num_steps"))
    facts: list[tuple[str, str]] = []
    rate = number(suggestion.get("lr"))
    if rate is None:
        facts.append(("suggestion", f"none: {text(content.get('why_none')) or 'unknown'}"))
    else:
        facts.append(("suggestion", f"train.lr={shown_rate(rate)}"))
    for label, key, words in (
        ("steepest", "steepest", "where the loss falls fastest"),
        ("minimum", "minimum", "where it is lowest; beyond, it rises"),
    ):
        found = number(suggestion.get(key))
        if found is not None:
            facts.append((label, f"{shown_rate(found)}  {words}"))
    remark = text(suggestion.get("remark"))
    if remark is not None:
        facts.append(("remark", remark))
    ended = {
        "diverged": "the loss diverged",
        "interrupted": "stopped by hand",
    }.get(text(content.get("status")) or "", "all rates were tried")
    of = "" if num_steps is None else f" of {num_steps:.0f}"
    facts.append(("ended", f"after step {num_done}{of}: {ended}"))
    return facts
