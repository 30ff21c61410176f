"""Many layers in few lines: means by kind of layer, and the layers that stand out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ince.lora.insight.comparison import LayerPair, pooled_cosine
from ince.lora.insight.inspection import LayerInsight
from ince.lora.insight.layer_kinds import customary

__all__ = ["KindSummary", "PairSummary", "extremes", "summarize_layers", "summarize_pairs"]

_Layer = TypeVar("_Layer")


@dataclass(frozen=True)
class KindSummary:
    """Means over the layers of a kind; of the whole adapter when `kind` is "all".

    Attributes:
        update_norm: ‖ΔW‖_F.
        spectral_norm: the greatest singular value.
        beside the base (`relative_norm`, `amplification`): over the layers that have it.
    """

    kind: str
    num_layers: int
    num_parameters: int
    update_norm: float
    spectral_norm: float
    rank_90: float
    rank_99: float
    stable_rank: float
    relative_norm: float | None
    amplification: float | None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class PairSummary:
    """Means over the shared layers of a kind; of all of them when `kind` is "all".

    Attributes:
        cosine: of the ΔWs of all these layers together.
        phi_a, phi_delta: (top 1, full rank) means of φ.
        random: what random subspaces reach, (top 1, full rank).
    """

    kind: str
    num_layers: int
    cosine: float | None
    phi_a: tuple[float, float] | None
    phi_delta: tuple[float, float] | None
    random: tuple[float, float] | None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _kinds(layers: Sequence[_Layer], kind: Callable[[_Layer], str]) -> dict[str, list[_Layer]]:
    """Layers by kind, kinds in their customary order."""
    found: dict[str, list[_Layer]] = {}
    for layer in layers:
        found.setdefault(kind(layer), []).append(layer)
    return {name: found[name] for name in sorted(found, key=customary)}


def summarize_layers(layers: Sequence[LayerInsight]) -> list[KindSummary]:
    """One line for each kind, and one for all where there are several kinds."""
    by_kind = _kinds(layers, lambda layer: layer.kind)
    lines = [_summarize(kind, same) for kind, same in by_kind.items()]
    return lines if len(lines) < 2 else [*lines, _summarize("all", layers)]


def _summarize(kind: str, layers: Sequence[LayerInsight]) -> KindSummary:
    return KindSummary(
        kind=kind,
        num_layers=len(layers),
        num_parameters=sum(layer.update.num_parameters for layer in layers),
        update_norm=_mean(layer.frobenius_norm for layer in layers) or 0.0,
        spectral_norm=_mean(layer.spectral_norm for layer in layers) or 0.0,
        rank_90=_mean(layer.rank_90 for layer in layers) or 0.0,
        rank_99=_mean(layer.rank_99 for layer in layers) or 0.0,
        stable_rank=_mean(layer.stable_rank for layer in layers) or 0.0,
        relative_norm=_mean(layer.relative_norm for layer in layers),
        amplification=_mean(
            None if layer.beside is None else layer.beside.amplification for layer in layers
        ),
    )


def extremes(layers: Sequence[LayerInsight]) -> list[tuple[str, LayerInsight]]:
    """The layers that change most and least, and those whose energy is spread most and least.

    Change is measured beside the base where every layer has been compared with it.
    """
    if len(layers) < 2:
        return []
    is_relative = all(layer.relative_norm is not None for layer in layers)

    def change(layer: LayerInsight) -> float:
        return (layer.relative_norm or 0.0) if is_relative else layer.frobenius_norm

    def width(layer: LayerInsight) -> float:
        return layer.stable_rank

    return [
        ("changes most", max(layers, key=change)),
        ("changes least", min(layers, key=change)),
        ("spread most", max(layers, key=width)),
        ("spread least", min(layers, key=width)),
    ]


def summarize_pairs(pairs: Sequence[LayerPair]) -> list[PairSummary]:
    """One line for each kind, and one for all where there are several kinds."""
    by_kind = _kinds(pairs, lambda pair: pair.kind)
    lines = [_summarize_pairs(kind, same) for kind, same in by_kind.items()]
    return lines if len(lines) < 2 else [*lines, _summarize_pairs("all", pairs)]


def _summarize_pairs(kind: str, pairs: Sequence[LayerPair]) -> PairSummary:
    of_a = [pair.phi_a for pair in pairs if pair.phi_a is not None]
    of_delta = [pair.phi_delta for pair in pairs if pair.phi_delta is not None]
    return PairSummary(
        kind=kind,
        num_layers=len(pairs),
        cosine=pooled_cosine(tuple(pairs)),
        phi_a=_both((grid.top, grid.full) for grid in of_a),
        phi_delta=_both((grid.top, grid.full) for grid in of_delta),
        random=_both((grid.random[0][0], grid.random_full) for grid in of_a),
    )


def _both(values: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    listed = list(values)
    if not listed:
        return None
    return sum(a for a, _ in listed) / len(listed), sum(b for _, b in listed) / len(listed)
