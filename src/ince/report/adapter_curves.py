"""Spectra, norms and shared directions of adapters as geometry, for the page and the picture.

Small panels side by side, one for each kind of layer, with the same axes: what differs is what
is seen.

    spectra       σ by rank on a logarithmic axis, one line a layer from shallow to deep; of two
                  adapters the median layer, and the band between least and greatest
    sizes         ‖ΔW‖ by layer, and ‖ΔW‖/‖W‖ where the base is known
    heat maps     φ(i, j) of two adapters beside what random subspaces reach
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from ince.lora.insight import AdapterInsight, Comparison, LayerInsight
from ince.lora.insight.layer_kinds import customary
from ince.report.adapter_maps import heat_lead, heat_maps
from ince.report.adapter_panels import Area, Drawing, Panel, PanelGroup, Point, Stroke, Style
from ince.report.curves import nice_ticks

__all__ = ["draw_adapters"]

Read = Callable[[LayerInsight], float | None]

_MAX_PANELS = 12
_MAX_STROKES = 64
# Below a ten-thousandth of the greatest σ nothing is left to compare.
_MAX_DECADES = 4


def draw_adapters(
    first: AdapterInsight,
    second: AdapterInsight | None = None,
    comparison: Comparison | None = None,
    *,
    names: tuple[str, ...],
) -> Drawing:
    """What to draw of one adapter, or of two and their comparison.

    Args:
        names: of the adapters, as a reader tells them apart.
    """
    adapters = [first] if second is None else [first, second]
    kinds, num_left_out = _kinds(adapters)
    groups = [_spectra(adapters, kinds, names)]
    # Where it is known, the size beside the weight comes first: it is what can be judged.
    relative = [layer.relative_norm for each in adapters for layer in each.layers]
    if relative and all(value is not None for value in relative):
        groups.append(_sizes(adapters, kinds, names, relative=True))
    groups.append(_sizes(adapters, kinds, names, relative=False))
    notes: list[str] = []
    if num_left_out:
        notes.append(f"{num_left_out} kinds of layers with fewer parameters are not drawn")
    if any(group is None for group in groups):
        notes.append("every ΔW is zero: there is no curve to draw")
    return Drawing(
        names=names,
        groups=tuple(group for group in groups if group is not None),
        heat_maps=() if comparison is None else tuple(heat_maps(comparison)),
        heat_lead=heat_lead(names) if comparison is not None else "",
        notes=tuple(notes),
    )


def _kinds(adapters: Sequence[AdapterInsight]) -> tuple[list[str], int]:
    """Kinds to draw in their customary order, and how many are left out: the smallest."""
    sizes: dict[str, int] = {}
    for each in adapters:
        for layer in each.layers:
            sizes[layer.kind] = sizes.get(layer.kind, 0) + layer.update.num_parameters
    kept = sorted(sizes, key=lambda kind: -sizes[kind])[:_MAX_PANELS]
    return sorted(kept, key=customary), len(sizes) - len(kept)


def _of_kind(adapter: AdapterInsight, kind: str) -> list[LayerInsight]:
    return [layer for layer in adapter.layers if layer.kind == kind]


_STYLES: tuple[Style, Style] = ("first", "second")


def _legend(names: tuple[str, ...]) -> tuple[tuple[Style, str], ...]:
    return tuple(zip(_STYLES, names, strict=False))


# ------------------------------------------------------------------------------------ spectra


def _spectra(
    adapters: Sequence[AdapterInsight], kinds: Sequence[str], names: tuple[str, ...]
) -> PanelGroup | None:
    values = [
        value
        for each in adapters
        for layer in each.layers
        if layer.kind in kinds
        for value in layer.singular_values
        if value > 0
    ]
    if not values:
        return None
    top = max(values)
    y = max(min(values), top * 10.0**-_MAX_DECADES) / 1.15, top * 1.15
    num_ranks = max(len(layer.singular_values) for each in adapters for layer in each.layers)
    two = len(adapters) > 1
    ranks = [rank for rank in nice_ticks(1, num_ranks, 4) if rank == int(rank) and rank > 1]
    return PanelGroup(
        title="Spectrum of ΔW",
        lead="Singular values of ΔW = s·BA by their rank, the strongest first. A line that falls "
        "soon means that few directions do the work, and that a lower rank could. "
        "Beside each title: how many directions hold 90% of the energy, on average."
        + (
            " Lines are the median layer, bands reach from the least to the greatest."
            if two
            else ""
        ),
        x_label="rank",
        y_label="σ",
        panels=tuple(
            _two_spectra(adapters, kind) if two else _spectrum(adapters[0], kind) for kind in kinds
        ),
        x=(1.0, float(max(2, num_ranks))),
        y=y,
        x_ticks=tuple((rank, f"{rank:.0f}") for rank in [1.0, *ranks]),
        y_ticks=_log_ticks(*y),
        is_log=True,
        legend=_legend(names) if two else (("depth", "first to last layer"),),
    )


def _curve(values: Iterable[float]) -> tuple[Point, ...]:
    return tuple((float(rank), value) for rank, value in enumerate(values, 1) if value > 0)


def _spectrum(adapter: AdapterInsight, kind: str) -> Panel:
    layers = _of_kind(adapter, kind)
    chosen = layers
    if len(layers) > _MAX_STROKES:
        chosen = [layers[n * (len(layers) - 1) // (_MAX_STROKES - 1)] for n in range(_MAX_STROKES)]
    last = max(1, len(chosen) - 1)
    ranks = statistics.fmean(layer.rank_90 for layer in layers)
    return Panel(
        title=kind,
        figure=f"90% in {ranks:.1f}",
        description=f"{kind}: singular values of {len(layers)} layers; 90% of the energy is in "
        f"{ranks:.1f} directions on average.",
        strokes=tuple(
            Stroke("depth", _curve(layer.singular_values), n / last)
            for n, layer in enumerate(chosen)
        ),
    )


def _two_spectra(adapters: Sequence[AdapterInsight], kind: str) -> Panel:
    strokes: list[Stroke] = []
    areas: list[Area] = []
    ranks: list[str] = []
    for style, adapter in zip(_STYLES, adapters, strict=True):
        layers = _of_kind(adapter, kind)
        if not layers:
            ranks.append("–")
            continue
        ranks.append(f"{statistics.fmean(layer.rank_90 for layer in layers):.1f}")
        width = min(len(layer.singular_values) for layer in layers)
        columns = [sorted(layer.singular_values[n] for layer in layers) for n in range(width)]
        middles = _curve(statistics.median(column) for column in columns)
        lower, upper = _curve(c[0] for c in columns), _curve(c[-1] for c in columns)
        strokes.append(Stroke(style, middles))
        if len(lower) == len(upper) > 1 and len(layers) > 1:
            areas.append(Area(style, lower, upper))
    return Panel(
        title=kind,
        figure=f"90% in {' · '.join(ranks)}",
        description=f"{kind}: singular values of both; 90% of the energy is in "
        f"{' and '.join(ranks)} directions on average.",
        strokes=tuple(strokes),
        areas=tuple(areas),
    )


def _log_ticks(bottom: float, top: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten, with 2 and 5 between them when there would be fewer than three."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [tick for tick in ticks if bottom <= tick <= top]
        if len(inside) >= 3:
            break
    return tuple((tick, f"{tick:g}") for tick in inside)


# -------------------------------------------------------------------------------------- sizes


def _sizes(
    adapters: Sequence[AdapterInsight],
    kinds: Sequence[str],
    names: tuple[str, ...],
    *,
    relative: bool,
) -> PanelGroup | None:
    def read(layer: LayerInsight) -> float | None:
        return layer.relative_norm if relative else layer.frobenius_norm

    curves = {
        (n, kind): _by_number(_of_kind(each, kind), read)
        for n, each in enumerate(adapters)
        for kind in kinds
    }
    points = [point for curve in curves.values() for point in curve]
    if not points or max(y for _, y in points) <= 0:
        return None
    numbered = [x for x, _ in points]
    left, right = min(numbered), max(numbered)
    top = 1.06 * max(y for _, y in points)
    two = len(adapters) > 1
    show = _percent if relative else _plain
    legend: tuple[tuple[Style, str], ...] = (("first", "this kind"), ("others", "the others"))
    return PanelGroup(
        title="Size beside the weight, ‖ΔW‖ / ‖W‖" if relative else "Size of ΔW, ‖ΔW‖",
        lead=(
            "Frobenius norm of the update over that of the weight it changes, by layer."
            if relative
            else "Frobenius norm of the update by layer, from the first to the last."
        ),
        x_label="layer",
        y_label="‖ΔW‖/‖W‖" if relative else "‖ΔW‖",
        panels=tuple(_size_panel(kind, curves, len(adapters), show) for kind in kinds),
        x=(left, right) if right > left else (left - 1, right + 1),
        y=(0.0, top),
        x_ticks=tuple(
            (tick, f"{tick:.0f}") for tick in nice_ticks(left, right, 4) if tick == int(tick)
        ),
        y_ticks=tuple((tick, show(tick)) for tick in nice_ticks(0.0, top, 6)),
        is_log=False,
        legend=_legend(names) if two else legend,
    )


def _size_panel(
    kind: str,
    curves: dict[tuple[int, str], tuple[Point, ...]],
    num_adapters: int,
    show: Callable[[float], str],
) -> Panel:
    mine = [curves[n, kind] for n in range(num_adapters)]
    others = (
        [Stroke("others", curve) for (_, other), curve in curves.items() if other != kind and curve]
        if num_adapters == 1
        else []
    )
    means = [show(statistics.fmean(y for _, y in curve)) if curve else "–" for curve in mine]
    return Panel(
        title=kind,
        figure=("mean " if num_adapters == 1 else "") + " · ".join(means),
        description=f"{kind}: size by layer, {' and '.join(means)} on average.",
        strokes=(
            *others,
            *(Stroke(style, curve) for style, curve in zip(_STYLES, mine, strict=False) if curve),
        ),
    )


def _by_number(layers: Sequence[LayerInsight], read: Read) -> tuple[Point, ...]:
    """The mean by layer number: experts of a layer are one point. No number is the beginning."""
    found: dict[int, list[float]] = {}
    for layer in layers:
        value = read(layer)
        if value is not None:
            found.setdefault(layer.number or 0, []).append(value)
    return tuple((float(x), statistics.fmean(values)) for x, values in sorted(found.items()))


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
