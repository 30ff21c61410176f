"""Curves in a terminal: Braille dots, two across and four down to a character.

Nothing but text, so that it can be copied, piped and read over any connection. Where curves
share a character the later one colors it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

__all__ = ["Mark", "Series", "plot_lines"]

# The bit of each dot, by column and row, in Unicode's block of Braille patterns.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Series:
    """Points of one curve, left to right; `joined` by lines, or single dots."""

    points: Sequence[Point]
    style: str = ""
    joined: bool = True


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`, behind the curves."""

    x: float
    style: str = "dim"


class _Canvas:
    """Dots in a box of characters."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._bits = [[0] * columns for _ in range(rows)]
        self._styles = [[""] * columns for _ in range(rows)]

    def dot(self, x: int, y: int, style: str) -> None:
        """Set a dot, counted from the top left; outside the box nothing happens."""
        if 0 <= x < 2 * self.columns and 0 <= y < 4 * self.rows:
            self._bits[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
            self._styles[y // 4][x // 2] = style

    def line(self, start: tuple[int, int], end: tuple[int, int], style: str) -> None:
        """Set the dots between two."""
        (x, y), (far_x, far_y) = start, end
        steps = max(abs(far_x - x), abs(far_y - y), 1)
        for step in range(steps + 1):
            at_x = round(x + (far_x - x) * step / steps)
            at_y = round(y + (far_y - y) * step / steps)
            self.dot(at_x, at_y, style)

    def row(self, number: int, marks: dict[int, str]) -> Text:
        """One line of characters; `marks` stand where there is no dot."""
        line = Text()
        for column in range(self.columns):
            bits = self._bits[number][column]
            if bits:
                line.append(chr(_BLANK + bits), style=self._styles[number][column])
            elif column in marks:
                line.append("┊", style=marks[column])
            else:
                line.append(" ")
        return line


class _Scale:
    """Maps a span of values to dots."""

    def __init__(self, span: tuple[float, float], num_dots: int) -> None:
        self.low, self.high = span
        self.num_dots = num_dots

    def at(self, value: float) -> int:
        width = self.high - self.low
        share = (value - self.low) / width if width > 0 else 0.5
        # Far outside is as good as just outside, and keeps numbers small.
        return round(min(2.0, max(-1.0, share)) * (self.num_dots - 1))


def plot_lines(
    series: Sequence[Series],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    x_ticks: Ticks,
    y_ticks: Ticks,
    width: int,
    height: int = 12,
    marks: Sequence[Mark] = (),
) -> list[Text]:
    """Draw, and return the lines from the top down, axes and labels with them.

    Args:
        series: the curves; later ones over earlier ones. What lies outside is not drawn.
        x, y: least and greatest value drawn.
        x_ticks, y_ticks: values with their labels.
        width: of the whole, in characters.
        height: of the box, in characters.
        marks: vertical lines.
    """
    gutter = max((len(label) for _, label in y_ticks), default=0)
    columns = max(8, width - gutter - 2)
    canvas = _Canvas(columns, height)
    across, down = _Scale(x, 2 * columns), _Scale(y, 4 * height)
    for each in series:
        # Rows count from the top.
        places = [(across.at(a), 4 * height - 1 - down.at(b)) for a, b in each.points]
        if not each.joined or len(places) == 1:
            for place in places:
                canvas.dot(*place, each.style)
        else:
            for start, end in itertools.pairwise(places):
                canvas.line(start, end, each.style)
    columns_marked = {across.at(mark.x) // 2: mark.style for mark in marks}
    labels = {height - 1 - down.at(value) // 4: label for value, label in y_ticks}
    lines: list[Text] = []
    for number in range(height):
        label = labels.get(number)
        line = Text(f"{label or '':>{gutter}} {'┤' if label else '│'}", style="dim")
        lines.append(line.append_text(canvas.row(number, columns_marked)))
    return [*lines, *_axis(across, x_ticks, gutter, columns)]


def _axis(across: _Scale, ticks: Ticks, gutter: int, columns: int) -> list[Text]:
    """The line under the box, and its labels: as many as have room."""
    axis = ["─"] * columns
    words = [" "] * columns
    free = 0
    for value, label in ticks:
        column = across.at(value) // 2
        start = min(max(0, column - len(label) // 2), columns - len(label))
        if not 0 <= column < columns or start < free or start < 0:
            continue
        axis[column] = "┬"
        words[start : start + len(label)] = label
        free = start + len(label) + 1
    return [
        Text(f"{'':>{gutter}} └{''.join(axis)}", style="dim"),
        Text(f"{'':>{gutter}}  {''.join(words).rstrip()}", style="dim"),
    ]
