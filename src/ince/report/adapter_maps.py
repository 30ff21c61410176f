"""φ of two adapters as heat maps: means over layers, chosen layers, and random directions."""

from collections.abc import Iterator, Sequence

from ince.lora.insight import Comparison, LayerPair
from ince.lora.insight.subspace import PhiGrid
from ince.report.adapter_panels import HeatMap

__all__ = ["heat_lead", "heat_maps"]


def heat_lead(names: tuple[str, ...]) -> str:
    """What the maps of these two adapters show."""
    return (
        f"φ(i, j) of {names[0]} (i, down) and {names[-1]} (j, across): the share of the smaller "
        "subspace that lies in the other, of the i and j strongest input directions. 1 is all of "
        "it; random directions reach max(i, j)/d, drawn beside it on the same scale."
    )


def heat_maps(comparison: Comparison) -> Iterator[HeatMap]:
    """Of A and of ΔW, and beside them what random subspaces reach on the same scale."""
    for of, what in (("a", "A"), ("delta", "ΔW")):
        mean = comparison.mean_phi(of)
        if mean is None:
            continue
        grid, num_layers = mean
        layers = f"mean of {num_layers} layers" if num_layers > 1 else "its only layer"
        yield _heat_map(f"{what}, {layers}", grid)
        if of == "delta":
            yield HeatMap(
                "random directions", f"all {grid.random_full:.3f}", grid, tuple(grid.random)
            )
    for label, pair in _chosen(comparison.pairs):
        if pair.phi_delta is not None:
            yield _heat_map(f"ΔW, {label}: {_short(pair)}", pair.phi_delta)


def _heat_map(title: str, grid: PhiGrid) -> HeatMap:
    figure = f"first {grid.top:.3f}, all {grid.full:.3f}, random {grid.random_full:.3f}"
    return HeatMap(title, figure, grid, grid.values)


def _short(pair: LayerPair) -> str:
    return pair.kind if pair.number is None else f"layer {pair.number} {pair.kind}"


def _chosen(pairs: Sequence[LayerPair]) -> list[tuple[str, LayerPair]]:
    """The layers that share most, the middle one, and those that share least."""
    known = [pair for pair in pairs if pair.phi_delta is not None]
    ordered = sorted(known, key=lambda pair: -(pair.phi_delta.full if pair.phi_delta else 0.0))
    if len(ordered) < 2:
        return []
    chosen = [("most alike", ordered[0]), ("least alike", ordered[-1])]
    if len(ordered) > 2:
        chosen.insert(1, ("in the middle", ordered[len(ordered) // 2]))
    return chosen
