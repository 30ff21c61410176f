"""One adapter, or two side by side, as a page that needs no network: ``--plot FILE.html``.

The drawing is inline SVG whose colors come from the page, light or dark. As in the report,
values reach the template as text, number or geometry, never as markup, and the page forbids
scripts and requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ince.lora.insight import AdapterInsight, Comparison
from ince.lora.insight.summary import summarize_layers, summarize_pairs
from ince.report.adapter_facts import (
    PAIR_HEAD,
    facts_of,
    kind_head,
    kind_line,
    layer_head,
    layer_line,
    one_line,
    pair_line,
)
from ince.report.adapter_panels import Area, Drawing, HeatMap, Panel, PanelGroup, Point, Stroke
from ince.report.loose import shown
from ince.report.template import page_template

__all__ = ["render_adapter_page"]

_BOX = 1000.0
_DEPTHS = 8
# Cells of so many shades: one path each.
_SHADES = 50


@dataclass(frozen=True)
class _Path:
    style: str
    path: str
    dot: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Tick:
    at: str
    label: str


@dataclass(frozen=True)
class _DrawnPanel:
    title: str
    figure: str
    description: str
    areas: Sequence[_Path]
    lines: Sequence[_Path]


@dataclass(frozen=True)
class _DrawnGroup:
    title: str
    lead: str
    x_label: str
    y_label: str
    legend: Sequence[tuple[str, str]]
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]
    panels: Sequence[_DrawnPanel]


@dataclass(frozen=True)
class _DrawnMap:
    title: str
    figure: str
    description: str
    width: int
    height: int
    shades: Sequence[tuple[str, str]]
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]


@dataclass(frozen=True)
class _Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_adapter_page(
    drawing: Drawing,
    first: AdapterInsight,
    second: AdapterInsight | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The page as HTML.

    Args:
        drawing: of `draw_adapters`, of the same adapters.
    """
    adapters = [first] if second is None else [first, second]
    return page_template("adapter.html.j2", "adapter.css", "report.css").render(
        names=[shown(name, limit=120) for name in drawing.names],
        headlines=[one_line(each) for each in adapters],
        facts=[facts_of(each) for each in adapters],
        groups=[_drawn(group) for group in drawing.groups],
        maps=[_drawn_map(each, drawing.heat_top) for each in drawing.heat_maps],
        heat_top=f"{drawing.heat_top:g}",
        heat_lead=drawing.heat_lead,
        pairs=None
        if comparison is None
        else _Table(
            "Shared directions by kind",
            PAIR_HEAD,
            [pair_line(line) for line in summarize_pairs(comparison.pairs)],
        ),
        tables=[
            table
            for name, each in zip(drawing.names, adapters, strict=True)
            if each.layers
            for table in _tables(each, "" if second is None else f" of {shown(name, limit=60)}")
        ],
        notes=[
            *drawing.notes,
            *dict.fromkeys(shown(note) for each in adapters for note in each.notes),
        ],
    )


def _tables(insight: AdapterInsight, of: str) -> list[_Table]:
    has_base = any(layer.beside is not None for layer in insight.layers)
    lines = summarize_layers(insight.layers)
    return [
        _Table(
            f"By kind{of}",
            kind_head(has_base=has_base),
            [kind_line(line, has_base=has_base) for line in lines],
        ),
        _Table(
            f"Every weight{of}",
            layer_head(has_base=has_base),
            [layer_line(layer, has_base=has_base) for layer in insight.layers],
        ),
    ]


# ------------------------------------------------------------------------------------ geometry


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _drawn(group: PanelGroup) -> _DrawnGroup:
    return _DrawnGroup(
        title=group.title,
        lead=group.lead,
        x_label=group.x_label,
        y_label=group.y_label,
        legend=group.legend,
        x_ticks=[
            _Tick(_percent(group.place((tick, group.y[0]))[0]), label)
            for tick, label in group.x_ticks
        ],
        y_ticks=[
            _Tick(_percent(1 - group.place((group.x[0], tick))[1]), label)
            for tick, label in group.y_ticks
        ],
        panels=[_drawn_panel(panel, group) for panel in group.panels],
    )


def _drawn_panel(panel: Panel, group: PanelGroup) -> _DrawnPanel:
    return _DrawnPanel(
        title=panel.title,
        figure=panel.figure,
        description=panel.description,
        areas=[_area(area, group) for area in panel.areas],
        lines=[_line(stroke, group) for stroke in panel.strokes if stroke.points],
    )


def _line(stroke: Stroke, group: PanelGroup) -> _Path:
    depth = f"depth-{round(stroke.depth * (_DEPTHS - 1))}" if stroke.style == "depth" else ""
    dot = None
    if len(stroke.points) == 1:
        x, y = group.place(stroke.points[0])
        dot = _percent(x), _percent(1 - y)
    return _Path(depth or stroke.style, f"M{_coordinates(stroke.points, group)}", dot)


def _area(area: Area, group: PanelGroup) -> _Path:
    around = (*area.lower, *reversed(area.upper))
    return _Path(area.style, f"M{_coordinates(around, group)}Z")


def _coordinates(points: Sequence[Point], group: PanelGroup) -> str:
    places = [group.place(point) for point in points]
    return " ".join(f"{_BOX * x:.0f},{_BOX * (1 - y):.0f}" for x, y in places)


def _drawn_map(each: HeatMap, top: float) -> _DrawnMap:
    shades: dict[int, list[str]] = {}
    for row, values in enumerate(each.values):
        for column, value in enumerate(values):
            shade = round(value / top * _SHADES)
            if shade > 0:
                shades.setdefault(shade, []).append(f"M{column} {row}h1v1h-1z")
    grid = each.grid
    return _DrawnMap(
        title=each.title,
        figure=each.figure,
        description=f"φ of {each.title}: {each.figure}.",
        width=len(grid.j_places),
        height=len(grid.i_places),
        shades=[(f"{shade / _SHADES:.2f}", "".join(cells)) for shade, cells in shades.items()],
        x_ticks=_map_ticks(grid.j_places),
        y_ticks=_map_ticks(grid.i_places),
    )


def _map_ticks(places: Sequence[int]) -> list[_Tick]:
    num = len(places)
    chosen = sorted({0, num // 4, num // 2, 3 * num // 4, num - 1})
    return [_Tick(_percent((n + 0.5) / num), str(places[n])) for n in chosen]
