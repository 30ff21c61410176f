"""Curves of a log as geometry: points thinned, scales chosen, paths written.

Drawn by hand rather than by a plotting library: a path and a few labels are a hundredth of
the bytes, take their colors from the page (light or dark), and stay sharp on paper. Paths
live in a box of 1000 by 1000, stretched by the page; y grows downward as in SVG.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ince.report.run_files import Curve

__all__ = ["Chart", "Line", "Mark", "Tick", "draw_chart", "nice_ticks", "smoothed", "thinned"]

_BOX = 1000.0
_MAX_BUCKETS = 240
_MAX_MARKS = 200

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One path of a chart. `style` is a CSS class; `dots` are (x, y) in percent of the box."""

    style: str
    path: str
    dots: Sequence[tuple[str, str]] = ()
    label: str = ""


@dataclass(frozen=True)
class Mark:
    """Steps to point at.

    Attributes:
        style: a CSS class.
        places: (step, value); without a value the step is marked on the axis.
        label: what one of them is.
    """

    style: str
    places: Sequence[tuple[float, float | None]]
    label: str


@dataclass(frozen=True)
class DrawnMark:
    """A `Mark` in percent of the box; `y` is None on the axis."""

    style: str
    places: Sequence[tuple[str, str | None]]
    label: str


@dataclass(frozen=True)
class Tick:
    """A label on an axis, `at` percent from the left or from the top."""

    at: str
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Chart:
    """Everything the template needs to draw one curve, or one above another."""

    name: str
    title: str
    description: str
    figure: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    levels: Sequence[str] = ()
    note: str = ""
    wide: bool = False
    legend: Sequence[Line] = field(default_factory=tuple)
    marks: Sequence[DrawnMark] = ()


def thinned(curve: Curve, num_buckets: int = _MAX_BUCKETS) -> Points:
    """At most two points a bucket, its least and its greatest: no spike is ever thinned away."""
    num = len(curve)
    if num <= 2 * num_buckets:
        return list(zip(curve.steps, curve.values, strict=True))
    points: Points = []
    for bucket in range(num_buckets):
        start, stop = bucket * num // num_buckets, (bucket + 1) * num // num_buckets
        span = range(start, stop)
        ends = {min(span, key=curve.values.__getitem__), max(span, key=curve.values.__getitem__)}
        points += [(curve.steps[i], curve.values[i]) for i in sorted(ends)]
    return points


def smoothed(curve: Curve, num_buckets: int = _MAX_BUCKETS) -> Points:
    """The centered moving mean over a twenty-fifth of the curve, at `num_buckets` places.

    At both ends the mean is over the half of the window that there is.
    """
    num = len(curve)
    if num == 0:
        return []
    sums = [0.0]
    for value in curve.values:
        sums.append(sums[-1] + value)
    half = num // 50
    places = sorted({round(i * (num - 1) / max(1, num_buckets - 1)) for i in range(num_buckets)})
    points: Points = []
    for i in places:
        start, stop = max(0, i - half), min(num, i + half + 1)
        mean = (sums[stop] - sums[start]) / (stop - start)
        points.append((curve.steps[i], mean))
    return points


def nice_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, at_most - 1)
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    if step <= 0 or low + step == low:
        return [low]
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _range(values: Sequence[float], *, from_zero: bool) -> tuple[float, float, int]:
    """The span to draw, with air; and how many values lie far above it and are cut.

    One step of a loss that blew up would otherwise flatten everything else.
    """
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    typical = ordered[int(0.98 * (len(ordered) - 1))]
    num_above = 0
    if len(ordered) >= 20 and high - low > 6 * (typical - low) > 0:
        high = low + 1.6 * (typical - low)
        num_above = sum(value > high for value in ordered)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = 0.0 if low >= 0 and (from_zero or low < 0.6 * high) else low - air
    return bottom, high + air, num_above


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


class _Frame:
    """Maps steps and values into the box."""

    def __init__(self, steps: tuple[float, float], values: tuple[float, float]) -> None:
        self.left, self.right = steps
        self.bottom, self.top = values

    def x(self, step: float) -> float:
        width = self.right - self.left
        return (step - self.left) / width if width > 0 else 0.5

    def y(self, value: float) -> float:
        return 1 - (value - self.bottom) / (self.top - self.bottom)

    def path(self, points: Points) -> str:
        # A point far above stays near the box, so that no coordinate grows without bound.
        places = [(self.x(s), min(2.0, max(-1.0, self.y(v)))) for s, v in points]
        joined = " ".join(f"{_BOX * x:.0f},{_BOX * y:.0f}" for x, y in places)
        return f"M{joined}" if joined else ""

    def dots(self, points: Points) -> list[tuple[str, str]]:
        return [(_percent(self.x(s)), _percent(self.y(v))) for s, v in points if v <= self.top]

    def mark(self, mark: Mark) -> DrawnMark:
        # What lies above the drawing is marked at its upper edge.
        places = [
            (
                _percent(self.x(step)),
                None if value is None else _percent(min(1.0, max(0.0, self.y(value)))),
            )
            for step, value in mark.places[:_MAX_MARKS]
            if self.left <= step <= self.right
        ]
        return DrawnMark(mark.style, places, mark.label)


def _step_ticks(frame: _Frame) -> list[Tick]:
    ticks: list[Tick] = []
    for step in nice_ticks(frame.left, frame.right, 5):
        at = frame.x(step)
        anchor = "start" if at < 0.03 else "end" if at > 0.97 else "middle"
        label = f"{step:,.0f}" if ticks else f"step {step:,.0f}"
        ticks.append(Tick(_percent(at), label, anchor))
    return ticks


def draw_chart(
    name: str,
    title: str,
    curve: Curve,
    *,
    steps: tuple[float, float],
    show: Callable[[float], str],
    show_tick: Callable[[float], str] | None = None,
    unit: float = 1.0,
    figure: str,
    evaluations: Curve | None = None,
    smooth: bool = False,
    from_zero: bool = False,
    mark_peak: bool = False,
    marks: Sequence[Mark] = (),
    wide: bool = False,
) -> Chart | None:
    """Draw one quantity over the steps of the run, or nothing when it was not logged.

    Args:
        steps: first and last step of the run, the same on every chart.
        show: a value in words, for the description that stands in for the drawing.
        show_tick: a value divided by `unit`, for the axis; `show` when absent.
        unit: what the axis counts in, such as ``2**30`` for GiB.
        figure: the one value worth reading, shown beside the title.
        evaluations: a second curve, drawn dashed with dots.
        smooth: draw a moving mean over the curve, which itself becomes faint.
        from_zero: begin the axis at zero even when the values stay far from it.
        mark_peak: draw a level at the greatest value.
        marks: steps to point at.
    """
    held_out = evaluations if evaluations is not None else Curve()
    if not len(curve) and not len(held_out):
        return None
    bottom, top, num_above = _range([*curve.values, *held_out.values], from_zero=from_zero)
    frame = _Frame(steps, (bottom, top))
    lines: list[Line] = []
    if len(curve):
        points = thinned(curve)
        drawn = smooth and len(curve) >= 8
        single = frame.dots(points) if len(curve) == 1 else []
        if drawn:
            lines.append(Line("faint", frame.path(points), label="each step"))
            lines.append(Line("train", frame.path(smoothed(curve)), label="training, smoothed"))
        else:
            lines.append(Line("train", frame.path(points), single, "training"))
    if len(held_out):
        points = thinned(held_out, 60)
        lines.append(Line("held", frame.path(points), frame.dots(points), "held-out"))
    values = curve.values if len(curve) else held_out.values
    described = (
        f"{title} by step, {steps[0]:,.0f} to {steps[1]:,.0f}: first {show(values[0])}, "
        f"last {show(values[-1])}, least {show(min(values))}, greatest {show(max(values))}."
    )
    if len(held_out):
        ends = show(held_out.values[0]), show(held_out.values[-1])
        described += " Held-out: first {}, last {}.".format(*ends)
    for mark in marks:
        described += f" {mark.label}: {len(mark.places):,}."
    label = show_tick or show
    greatest = max(values)
    return Chart(
        name=name,
        title=title,
        description=described,
        figure=figure,
        lines=lines,
        x_ticks=_step_ticks(frame),
        y_ticks=[
            Tick(_percent(frame.y(value * unit)), label(value))
            for value in nice_ticks(bottom / unit, top / unit, 5 if wide else 4)
        ],
        levels=[_percent(frame.y(greatest))] if mark_peak else [],
        note=f"{num_above:,} far above the drawing, up to {show(greatest)}" if num_above else "",
        wide=wide,
        legend=lines if wide and len(lines) + len(marks) > 1 else [],
        marks=[frame.mark(mark) for mark in marks],
    )
