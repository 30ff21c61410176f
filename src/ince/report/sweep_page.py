"""From the folder of a sweep to ``sweep.html``: who won, by how much, and what each value did.

As in the report of a run, values reach the template as text, number or geometry, never as
markup, and the page forbids scripts and requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ince.files import write_text
from ince.report.sweep_drawing import Curve, Panel, loss_panels, value_panels
from ince.report.sweep_view import SweepView, read_sweep
from ince.report.template import page_template
from ince.units import format_count

__all__ = ["render_sweep_page", "write_sweep_page"]

_BOX = 1000.0


@dataclass(frozen=True)
class _Drawn:
    """A curve as geometry."""

    style: str
    name: str
    path: str
    dots: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Tick:
    at: str
    label: str


@dataclass(frozen=True)
class _DrawnPanel:
    title: str
    figure: str
    description: str
    note: str
    x_label: str
    curves: Sequence[_Drawn]
    x_ticks: Sequence[_Tick]
    y_ticks: Sequence[_Tick]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _drawn(panel: Panel) -> _DrawnPanel:
    return _DrawnPanel(
        title=panel.title,
        figure=panel.figure,
        description=panel.description,
        note=panel.note,
        x_label=panel.x_label,
        curves=[_curve(curve, panel) for curve in panel.curves],
        x_ticks=[
            _Tick(_percent(panel.place((at, panel.y[0]))[0]), label) for at, label in panel.x_ticks
        ],
        y_ticks=[
            _Tick(_percent(1 - panel.place((panel.x[0], at))[1]), label)
            for at, label in panel.y_ticks
        ],
    )


def _curve(curve: Curve, panel: Panel) -> _Drawn:
    places = [panel.place(point) for point in curve.points]
    path = "M" + " ".join(f"{_BOX * x:.0f},{_BOX * (1 - y):.0f}" for x, y in places)
    has_dots = curve.dots or len(places) == 1
    dots = [(_percent(x), _percent(1 - y)) for x, y in places if y <= 1] if has_dots else []
    return _Drawn(curve.standing, curve.name, path if curve.joined else "", dots)


def _headline(view: SweepView) -> tuple[str, str]:
    best = view.best
    if best is None or best.loss is None:
        return {
            "failed": ("Every candidate failed.", ""),
            "done": ("The sweep is done, and names no best.", ""),
        }.get(
            view.status,
            (
                "The sweep is not finished.",
                "What is here is what it had reached when this was made.",
            ),
        )
    values = ", ".join(
        f"{key.rpartition('.')[2]} {value}"
        for key, value in zip(view.keys, best.values, strict=True)
    )
    lead = f"Held-out loss {best.loss:.4f} after {best.steps:,} steps"
    rivals = [each for each in view.candidates[1:] if each.rung == best.rung and each.loss]
    if rivals:
        lead += f"; the next one trained as long ended at {rivals[0].loss:.4f}"
    return f"Best of {len(view.candidates)}: {values}.", lead + "."


def _keys(view: SweepView) -> list[tuple[str, str]]:
    share = 100 * view.num_steps_trained / max(1, view.num_steps_of_all)
    failed = sum(each.standing == "failed" for each in view.candidates)
    facts = [
        ("candidates", f"{len(view.candidates):,}"),
        ("steps trained", format_count(view.num_steps_trained)),
        ("of training all whole", f"{share:.0f}%"),
    ]
    return [*facts, ("failed", f"{failed:,}")] if failed else facts


def render_sweep_page(folder: Path) -> str:
    """The page of the sweep in `folder`, as HTML.

    Raises:
        InputError: `folder` holds no sweep.
        CorruptFileError: its ``sweep.json`` cannot be read.
    """
    view = read_sweep(folder)
    headline, lead = _headline(view)
    return page_template("sweep.html.j2", "sweep.css", "report.css").render(
        view=view,
        headline=headline,
        lead=lead,
        keys=_keys(view),
        panels=[_drawn(panel) for panel in loss_panels(view)],
        value_panels=[_drawn(panel) for panel in value_panels(view)],
    )


def write_sweep_page(folder: Path) -> Path:
    """Write ``sweep.html`` into the sweep's folder, whole, and return its path.

    Raises:
        InputError: `folder` holds no sweep, or cannot be written to.
        DiskFullError: no space is left; an older page is as it was.
    """
    target = Path(folder) / "sweep.html"
    write_text(target, render_sweep_page(folder))
    return target
