"""What is drawn of adapters, as geometry: lines in panels with common axes, and heat maps.

Nothing here knows colors or pixels; a stroke has a style by name.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ince.lora.insight.subspace import PhiGrid

__all__ = ["Area", "Drawing", "HeatMap", "Panel", "PanelGroup", "Point", "Stroke", "Style"]

Style = Literal["depth", "first", "second", "others"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Stroke:
    """A line through points, or a dot. `depth` is 0 at the first layer and 1 at the last."""

    style: Style
    points: tuple[Point, ...]
    depth: float = 0.0


@dataclass(frozen=True)
class Area:
    """Between two lines over the same x."""

    style: Style
    lower: tuple[Point, ...]
    upper: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One kind of layer: title, the number worth reading, and what is drawn."""

    title: str
    figure: str
    description: str
    strokes: tuple[Stroke, ...]
    areas: tuple[Area, ...] = ()


@dataclass(frozen=True)
class PanelGroup:
    """Panels with the same axes.

    Attributes:
        x, y: least and greatest value on each axis.
        x_ticks, y_ticks: (value, label).
        is_log: whether y is logarithmic.
        legend: (style, label); "depth" is a ramp.
    """

    title: str
    lead: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    x: Point
    y: Point
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    is_log: bool
    legend: tuple[tuple[Style, str], ...]

    def place(self, point: Point) -> Point:
        """A point in the unit square, y upward; far outside it is cut at one square's distance."""
        (left, right), (bottom, top) = self.x, self.y
        x, y = point
        if self.is_log:
            bottom, top, y = (math.log10(max(value, 1e-300)) for value in (bottom, top, y))
        return (
            (x - left) / (right - left) if right > left else 0.5,
            min(2.0, max(-1.0, (y - bottom) / (top - bottom))),
        )


@dataclass(frozen=True)
class HeatMap:
    """φ by i (down) and j (across), both counted from 1."""

    title: str
    figure: str
    grid: PhiGrid
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """Everything that is drawn of one adapter, or of two."""

    names: tuple[str, ...]
    groups: tuple[PanelGroup, ...]
    heat_maps: tuple[HeatMap, ...] = ()
    heat_lead: str = ""
    notes: tuple[str, ...] = ()

    @property
    def heat_top(self) -> float:
        """Where the scale of all heat maps ends: 0.1, 0.2, 0.5 or 1, above their greatest φ."""
        greatest = max(
            (value for each in self.heat_maps for row in each.values for value in row), default=1.0
        )
        return next((top for top in (0.1, 0.2, 0.5) if greatest <= top), 1.0)
