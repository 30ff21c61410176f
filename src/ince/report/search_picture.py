"""A learning-rate range test, or the curves of a sweep, as a PNG.

Drawn by matplotlib, which is an extra; terminal and page need nothing.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from ince.errors import InputError
from ince.report.lr_find import range_drawing, range_facts, shown_rate
from ince.report.sweep_drawing import Panel, loss_panels
from ince.report.sweep_view import Standing, SweepView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_can_draw", "lr_find_png", "sweep_png"]

_PAPER, _CARD, _INK, _QUIET, _GRID = "#fcfbf9", "#ffffff", "#1d1f21", "#666a6e", "#eceae5"
_ACCENT, _HELD, _FAINT = "#0b7a75", "#b06a00", "#9ccfca"
_DPI = 150
# Color and width of a candidate's curve.
_CURVES: dict[Standing, tuple[str, float]] = {
    "best": (_ACCENT, 2.6),
    "finalist": (_HELD, 1.5),
    "stopped": ("#cfcac0", 1.1),
    "failed": ("#cfcac0", 1.1),
}


def check_can_draw() -> None:
    """Refuse at once what would fail after the work is done.

    Raises:
        InputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "a PNG is drawn by matplotlib, which is not installed",
            do="pip install 'ince[plot]', or leave --plot out",
        )


def _content(figure: "Figure") -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", facecolor=_PAPER)
    return content.getvalue()


def _words(axes: "Axes", x: float, y: float, words: str, *, size: float, color: str) -> None:
    # Names come from other people's files: none is read as a formula.
    axes.text(x, y, words, transform=axes.transAxes, fontsize=size, color=color, parse_math=False)


def _dress(
    axes: "Axes",
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> None:
    axes.set_facecolor(_CARD)
    axes.set_xticks([at for at, _ in x_ticks], [label for _, label in x_ticks])
    axes.set_yticks([at for at, _ in y_ticks], [label for _, label in y_ticks])
    axes.minorticks_off()
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=_QUIET, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#cfccc5")
    axes.set_xlabel(x_label, fontsize=9.5, color=_QUIET, labelpad=5)
    axes.set_ylabel(y_label, fontsize=9.5, color=_QUIET, labelpad=6)


def lr_find_png(content: Mapping[str, object]) -> bytes:
    """Draw a range test, and return the file's content.

    Args:
        content: of an ``lr_find.json``.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.0), dpi=_DPI, facecolor=_PAPER)
    axes = figure.add_axes((0.09, 0.13, 0.87, 0.69))
    facts = dict(range_facts(content))
    _words(axes, 0.0, 1.15, facts["suggestion"], size=15, color=_INK)
    _words(axes, 0.0, 1.06, facts.get("remark", facts["ended"]), size=9.5, color=_QUIET)
    drawing = range_drawing(content)
    if drawing is None:
        axes.set_axis_off()
        return _content(figure)
    axes.plot(*zip(*drawing.losses, strict=True), ".", color=_FAINT, markersize=5, zorder=2)
    axes.plot(*zip(*drawing.smoothed, strict=True), color=_ACCENT, linewidth=2, zorder=3)
    marks = (
        ("lowest", drawing.minimum, _QUIET, "o", 6),
        ("steepest", drawing.steepest, _HELD, "s", 6),
        ("suggested", drawing.suggestion, _ACCENT, "D", 8),
    )
    for name, place, color, shape, size in marks:
        if place is not None:
            label = f"{name} {shown_rate(10 ** place[0])}"
            axes.plot(
                *place,
                shape,
                color=color,
                markersize=size,
                markeredgecolor=_CARD,
                label=label,
                linestyle="",
                zorder=4,
            )
    if drawing.suggestion is not None:
        axes.axvline(drawing.suggestion[0], color=_ACCENT, linewidth=1, alpha=0.5, zorder=1)
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="lower left")
    axes.set_xlim(*drawing.x)
    axes.set_ylim(*drawing.y)
    _dress(
        axes,
        x_ticks=drawing.x_ticks,
        y_ticks=drawing.y_ticks,
        x_label="learning rate (train.lr)",
        y_label="loss, each step and smoothed",
    )
    return _content(figure)


def sweep_png(view: SweepView) -> bytes:
    """Draw the loss curves of a sweep, the best on top, and return the file's content.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib.figure import Figure

    panels = loss_panels(view)
    figure = Figure(figsize=(12.0, 5.0), dpi=_DPI, facecolor=_PAPER)
    best = view.best
    title = f"best of {len(view.candidates)}: {best.name}" if best else f"sweep: {view.status}"
    figure.text(0.06, 0.92, title, fontsize=15, color=_INK, parse_math=False)
    for place, panel in enumerate(panels):
        axes = figure.add_axes((0.06 + 0.49 * place, 0.13, 0.43, 0.66))
        _words(axes, 0.0, 1.05, f"{panel.title}   {panel.figure}", size=10.5, color=_INK)
        _draw(axes, panel, with_legend=place == 0)
    return _content(figure)


def _draw(axes: "Axes", panel: Panel, *, with_legend: bool) -> None:
    labeled: set[Standing] = set()
    names: dict[Standing, str] = {"best": "best", "finalist": "to the end, too"}
    for order, curve in enumerate(panel.curves):
        color, width = _CURVES[curve.standing]
        label = names.get(curve.standing, "stopped")
        axes.plot(
            [x for x, _ in curve.points],
            [y for _, y in curve.points],
            color=color,
            linewidth=width,
            linestyle=(0, (1, 2)) if curve.standing == "failed" else "-",
            marker="o" if curve.dots or len(curve.points) == 1 else None,
            markersize=4,
            label=None if curve.standing in labeled or curve.standing == "failed" else label,
            zorder=3 + order,
        )
        labeled.add(curve.standing)
    if with_legend and labeled - {"failed"}:
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="upper right")
    air = 0.02 * (panel.x[1] - panel.x[0])
    axes.set_xlim(panel.x[0] - air, panel.x[1] + air)
    axes.set_ylim(*panel.y)
    _dress(axes, x_ticks=panel.x_ticks, y_ticks=panel.y_ticks, x_label=panel.x_label, y_label="")
