"""The drawings of a sweep, the same for page and picture: loss curves, and losses by value.

Where a few candidates blew up, the drawing is cut above the others: the differences among the
good ones are what it is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ince.report.curves import nice_ticks
from ince.report.sweep_view import Standing, SweepView, ValueView

__all__ = ["Curve", "Panel", "loss_panels", "value_panels"]

Point = tuple[float, float]

# What is drawn last lies on top.
_ORDER: tuple[Standing, ...] = ("failed", "stopped", "finalist", "best")


@dataclass(frozen=True)
class Curve:
    """A line of a panel, `dots` on its points; `joined` by a line or dots alone."""

    name: str
    standing: Standing
    points: Sequence[Point]
    dots: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Panel:
    """A drawing with its scales."""

    title: str
    figure: str
    description: str
    curves: Sequence[Curve]
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_label: str
    note: str = ""

    def place(self, point: Point) -> Point:
        """Shares of the box from its left and its bottom; far outside counts as just outside."""
        (left, right), (bottom, top) = self.x, self.y
        across = (point[0] - left) / (right - left) if right > left else 0.5
        up = (point[1] - bottom) / (top - bottom) if top > bottom else 0.5
        return across, min(1.5, max(-0.5, up))


def loss_panels(view: SweepView) -> list[Panel]:
    """Held-out and training loss of all candidates, the best on top; empty without logs."""
    panels: list[Panel] = []
    for title, dots in (("Held-out loss", True), ("Training loss, smoothed", False)):
        curves = [
            Curve(each.name, each.standing, points, dots=dots)
            for each in sorted(view.candidates, key=lambda each: _ORDER.index(each.standing))
            if (points := each.held_out if dots else each.training)
        ]
        if curves:
            panels.append(_loss_panel(title, curves, view))
    return panels


def _loss_panel(title: str, curves: Sequence[Curve], view: SweepView) -> Panel:
    steps = [x for curve in curves for x, _ in curve.points]
    y, num_cut = _span(curves)
    low, high = min(0.0, *steps), max(1.0, *steps)
    ends = [curve for curve in curves if curve.standing == "best"]
    figure = f"best ends at {ends[0].points[-1][1]:.3f}" if ends else ""
    return Panel(
        title=title,
        figure=figure,
        description=f"{title} of {len(curves)} candidates by {view.x_label}. {figure}".strip(),
        curves=curves,
        x=(low, high),
        y=y,
        x_ticks=[(tick, f"{tick:,.0f}") for tick in nice_ticks(low, high, 6)],
        y_ticks=[(tick, f"{tick:.3g}") for tick in nice_ticks(*y, 5)],
        x_label=view.x_label,
        note=f"{num_cut} of the curves leave the drawing above" if num_cut else "",
    )


def _span(curves: Sequence[Curve]) -> tuple[tuple[float, float], int]:
    """Least and greatest loss to draw, and how many curves go beyond."""
    values = [y for curve in curves for _, y in curve.points]
    low, high = min(values), max(values)
    kept = [y for curve in curves if curve.standing == "best" for _, y in curve.points]
    wanted = max([low + 3 * (median(values) - low), *kept])
    num_cut = 0
    if high > 1.25 * (wanted - low) + low > low:
        high = wanted
        num_cut = sum(any(y > high for _, y in curve.points) for curve in curves)
    air = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low - air, high + air), num_cut


def value_panels(view: SweepView) -> list[Panel]:
    """For each key, the losses at the first rung by value, and a line along the least ones."""
    return [_value_panel(each) for each in view.by_value if len(each.values) > 1]


def _value_panel(each: ValueView) -> Panel:
    lowest = [(float(place), losses[0]) for place, losses in enumerate(each.losses) if losses]
    others = [
        (float(place), loss) for place, losses in enumerate(each.losses) for loss in losses[1:]
    ]
    curves = [Curve("others", "stopped", others, dots=True, joined=False)] if others else []
    curves.append(Curve("least with each value", "finalist", lowest, dots=True))
    chosen = [point for point in lowest if each.best is not None and point[0] == each.best]
    if chosen:
        curves.append(Curve("value of the best", "best", chosen, dots=True, joined=False))
    y, num_cut = _span(curves[:-1] if chosen and len(curves) > 1 else curves)
    shown = ", ".join(
        f"{value}: {losses[0]:.3f}"
        for value, losses in zip(each.values, each.losses, strict=True)
        if losses
    )
    return Panel(
        title=each.key,
        figure="",
        description=f"Least held-out loss at the first rung by {each.key}: {shown}.",
        curves=curves,
        x=(-0.4, len(each.values) - 0.6),
        y=y,
        x_ticks=[(float(place), value) for place, value in enumerate(each.values)],
        y_ticks=[(tick, f"{tick:.3g}") for tick in nice_ticks(*y, 4)],
        x_label="",
        note=f"{num_cut} of the rows leave the drawing above" if num_cut else "",
    )
