"""The drawing of one adapter, or of two, as a PNG.

Drawn by matplotlib, which is an extra: the page (``.html``) needs nothing. The figure is laid
out by hand in inches, so that panels are of one size however many there are.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from ince.errors import InputError
from ince.report.adapter_panels import Drawing, HeatMap, PanelGroup, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

__all__ = ["check_can_draw_png", "png_bytes"]

_PAPER, _CARD, _INK, _QUIET, _GRID = "#fcfbf9", "#ffffff", "#1d1f21", "#666a6e", "#eceae5"
_ACCENT, _HELD = "#0b7a75", "#b06a00"
_COLORS: dict[Style, str] = {"first": _ACCENT, "second": _HELD, "others": "#dcd9d2", "depth": _INK}
_SHALLOW, _MIDDLE, _DEEP = "#a8d8d2", "#2b938c", "#083f3c"

_DPI = 150
# In inches.
_WIDTH, _MARGIN = 11.0, 0.5
_COLUMNS, _PANEL_HEIGHT, _GAP = 4, 1.35, 0.62
_MAP_COLUMNS, _MAP_GAP, _MAP_HEAD = 3, 0.6, 0.9
_TITLE, _LINE, _AIR, _LEGEND, _MAP_LEGEND = 0.29, 0.17, 0.07, 0.48, 0.8
_LINE_CHARACTERS = 145
_HEAD, _SUBTITLE, _HEAD_GAP = 0.36, 0.2, 0.22


def check_can_draw_png() -> None:
    """Refuse at once what would fail after the work is done.

    Raises:
        InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "a PNG is drawn by matplotlib, which is not installed",
            expected="matplotlib, or a plot that ends in .html, which needs nothing",
            do="pip install 'ince[plot]', or choose a name that ends in .html",
        )


def png_bytes(drawing: Drawing, *, title: str, subtitles: Sequence[str]) -> bytes:
    """Draw, and return the file's content.

    Args:
        drawing: of `draw_adapters`.
        title: the one large line.
        subtitles: a line for each adapter.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_can_draw_png()
    from matplotlib.figure import Figure

    height = _height(drawing) + _SUBTITLE * len(subtitles)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor=_PAPER)
    page = _Page(figure, height)
    page.text(title, size=17, weight="bold", down=_HEAD)
    for subtitle in subtitles:
        page.text(subtitle, size=10, color=_QUIET, down=_SUBTITLE)
    page.top += _HEAD_GAP
    for group in drawing.groups:
        _draw_group(page, group)
    if drawing.heat_maps:
        _draw_maps(page, drawing)
    for note in drawing.notes:
        page.text(note, size=9, color=_QUIET, down=0.22)
    content = BytesIO()
    figure.savefig(content, format="png", facecolor=_PAPER)
    return content.getvalue()


def _num_rows(num: int, columns: int) -> int:
    return -(-num // columns)


def _map_size() -> float:
    return (_WIDTH - 2 * _MARGIN - (_MAP_COLUMNS - 1) * _MAP_GAP) / _MAP_COLUMNS - 0.35


def _height(drawing: Drawing) -> float:
    height = 2 * _MARGIN + _HEAD + _HEAD_GAP + 0.22 * len(drawing.notes)
    for group in drawing.groups:
        rows = _num_rows(len(group.panels), _COLUMNS)
        height += _head_height(group.lead) + _LEGEND + rows * (_PANEL_HEIGHT + _GAP)
    if drawing.heat_maps:
        rows = _num_rows(len(drawing.heat_maps), _MAP_COLUMNS)
        height += _head_height(drawing.heat_lead) + _MAP_LEGEND + rows * (_map_size() + _MAP_HEAD)
    return height - 0.3


def _head_height(lead: str) -> float:
    return _TITLE + _LINE * len(_folded(lead)) + _AIR


def _folded(words: str) -> list[str]:
    return textwrap.wrap(words, _LINE_CHARACTERS)


class _Page:
    """A cursor that goes down the figure, in inches."""

    def __init__(self, figure: "Figure", height: float) -> None:
        self.figure, self.height, self.top = figure, height, _MARGIN

    def text(
        self,
        words: str,
        *,
        size: float,
        down: float,
        weight: str = "normal",
        color: str = _INK,
        left: float = _MARGIN,
    ) -> None:
        self.label(words, left=left, size=size, weight=weight, color=color)
        self.top += down

    def label(
        self,
        words: str,
        *,
        left: float,
        size: float,
        above: float = 0.0,
        weight: str = "normal",
        color: str = _INK,
        align: str = "left",
    ) -> None:
        self.figure.text(
            left / _WIDTH,
            1 - (self.top + above) / self.height,
            # Names come from other people's folders: none is read as a formula.
            words.replace("$", r"\$"),
            fontsize=size,
            fontweight=weight,
            color=color,
            ha=align,
            va="top",
        )

    def axes(self, left: float, down: float, width: float, height: float) -> "Axes":
        return self.figure.add_axes(
            (
                left / _WIDTH,
                1 - (self.top + down + height) / self.height,
                width / _WIDTH,
                height / self.height,
            ),
            facecolor=_CARD,
        )


def _ramp() -> "LinearSegmentedColormap":
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("depth", [_SHALLOW, _MIDDLE, _DEEP])


def _draw_head(page: _Page, title: str, lead: str) -> None:
    page.text(title, size=13, weight="bold", down=_TITLE)
    for line in _folded(lead):
        page.text(line, size=9, color=_QUIET, down=_LINE)
    page.top += _AIR


def _draw_group(page: _Page, group: PanelGroup) -> None:
    _draw_head(page, group.title, group.lead)
    _draw_legend(page, group.legend)
    page.top += _LEGEND
    room = _WIDTH - 2 * _MARGIN
    cell = room / _COLUMNS
    ramp = _ramp()
    for n, panel in enumerate(group.panels):
        row, column = divmod(n, _COLUMNS)
        left = _MARGIN + column * cell + 0.42
        down = row * (_PANEL_HEIGHT + _GAP)
        axes = page.axes(left, down, cell - 0.62, _PANEL_HEIGHT)
        for area in panel.areas:
            axes.fill_between(
                [x for x, _ in area.lower],
                [y for _, y in area.lower],
                [y for _, y in area.upper],
                color=_COLORS[area.style],
                alpha=0.13,
                linewidth=0,
            )
        for stroke in panel.strokes:
            axes.plot(
                [x for x, _ in stroke.points],
                [y for _, y in stroke.points],
                color=ramp(stroke.depth) if stroke.style == "depth" else _COLORS[stroke.style],
                linewidth=0.9 if stroke.style in ("depth", "others") else 1.8,
                linestyle=(0, (4, 1.6)) if stroke.style == "second" else "-",
                marker="o" if len(stroke.points) == 1 else None,
                markersize=3.5,
                solid_capstyle="round",
                zorder=2 if stroke.style == "others" else 3,
            )
        _dress(axes, group, is_first=column == 0)
        page.label(panel.title, left=left, above=down - 0.2, size=9, weight="bold")
        right = left + cell - 0.62
        page.label(panel.figure, left=right, above=down - 0.19, size=8, color=_QUIET, align="right")
    page.top += _num_rows(len(group.panels), _COLUMNS) * (_PANEL_HEIGHT + _GAP)


def _dress(axes: "Axes", group: PanelGroup, *, is_first: bool) -> None:
    if group.is_log:
        axes.set_yscale("log")
    (left, right), (bottom, top) = group.x, group.y
    air = 0.03 * (right - left)
    axes.set_xlim(left - air, right + air)
    axes.set_ylim(bottom, top)
    axes.set_xticks([tick for tick, _ in group.x_ticks], [label for _, label in group.x_ticks])
    axes.set_yticks([tick for tick, _ in group.y_ticks], [label for _, label in group.y_ticks])
    axes.minorticks_off()
    axes.grid(visible=True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=_QUIET, pad=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#cfccc5")
    axes.set_xlabel(group.x_label, fontsize=7.5, color=_QUIET, labelpad=2)
    if is_first:
        axes.set_ylabel(group.y_label, fontsize=8, color=_QUIET, labelpad=4)


def _draw_legend(page: _Page, legend: Sequence[tuple[Style, str]]) -> None:
    left = _MARGIN
    for style, label in legend:
        axes = page.axes(left, 0.02, 0.4, 0.1)
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        if style == "depth":
            ramp = _ramp()
            for n in range(32):
                axes.axvspan(n / 32, (n + 1) / 32, 0.2, 0.8, color=ramp(n / 31), linewidth=0)
        else:
            dashes = (0, (4, 1.6)) if style == "second" else "-"
            axes.plot([0.0, 1.0], [0.5, 0.5], color=_COLORS[style], linewidth=2, linestyle=dashes)
        page.label(label, left=left + 0.48, size=8.5, color=_QUIET)
        left += 0.48 + 0.07 * len(label) + 0.3


def _draw_maps(page: _Page, drawing: Drawing) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    _draw_head(page, "Directions that both share, φ", drawing.heat_lead)
    heat = LinearSegmentedColormap.from_list("heat", [_CARD, "#79c0ba", _ACCENT, "#062e2c"])
    size = _map_size()
    bar = page.axes(_MARGIN, 0.0, 1.6, 0.1)
    bar.imshow([[n / 63 for n in range(64)]], cmap=heat, aspect="auto", vmin=0, vmax=1)
    bar.set_axis_off()
    page.label("φ = 0", left=_MARGIN, above=0.12, size=8, color=_QUIET)
    page.label(
        f"{drawing.heat_top:g}", left=_MARGIN + 1.6, above=0.12, size=8, color=_QUIET, align="right"
    )
    page.top += _MAP_LEGEND
    cell = (_WIDTH - 2 * _MARGIN + _MAP_GAP) / _MAP_COLUMNS
    for n, each in enumerate(drawing.heat_maps):
        row, column = divmod(n, _MAP_COLUMNS)
        left, down = _MARGIN + column * cell + 0.35, row * (size + _MAP_HEAD)
        axes = page.axes(left, down, size, size)
        axes.imshow(
            each.values,
            cmap=heat,
            vmin=0,
            vmax=drawing.heat_top,
            aspect="auto",
            interpolation="nearest",
        )
        _dress_map(axes, each)
        page.label(each.title, left=left, above=down - 0.37, size=9, weight="bold")
        page.label(each.figure, left=left, above=down - 0.19, size=8, color=_QUIET)
    page.top += _num_rows(len(drawing.heat_maps), _MAP_COLUMNS) * (size + _MAP_HEAD)


def _dress_map(axes: "Axes", each: HeatMap) -> None:
    for places, set_ticks in (
        (each.grid.j_places, axes.set_xticks),
        (each.grid.i_places, axes.set_yticks),
    ):
        chosen = sorted(
            {0, len(places) // 4, len(places) // 2, 3 * len(places) // 4, len(places) - 1}
        )
        set_ticks(chosen, [str(places[n]) for n in chosen])
    axes.tick_params(length=0, labelsize=7.5, labelcolor=_QUIET, pad=3)
    axes.set_xlabel("j", fontsize=8, color=_QUIET, labelpad=1)
    axes.set_ylabel("i", fontsize=8, color=_QUIET, labelpad=2, rotation=0)
    for spine in axes.spines.values():
        spine.set_color("#cfccc5")
        spine.set_linewidth(0.7)
