"""What an adapter is made of: `inspect_adapter` reads a folder and measures every layer.

    what it is         method, rank, scale, targets, parameters, bytes
    of each layer      norms and singular values of ΔW, and how many of them carry it
    beside the base    ‖ΔW‖ / ‖W‖ and the amplification factor, where the base is there

Nothing is trained, merged or built; the base is optional, and read one weight at a time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.formats.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from ince.lora.factors import Factors
from ince.lora.insight.base_weights import BaseWeights
from ince.lora.insight.beside_base import BesideBase, beside_base, magnitude_gain
from ince.lora.insight.layer_kinds import kinds_of, layer_number
from ince.lora.insight.layer_update import LayerUpdate
from ince.lora.insight.settings import AdapterSettings, read_settings
from ince.lora.insight.spectrum import energy_rank, factor_svd, stable_rank
from ince.lora.insight.tensor_names import SortedTensors, TrainedTensor, sort_tensors
from ince.lora.insight.updates import read_updates

__all__ = ["AdapterInsight", "LayerInsight", "TrainedInsight", "inspect_adapter"]

Progress = Callable[[str, int, int], None]

# A description names so many modules as examples.
_MAX_NAMES_SHOWN = 3


@dataclass(frozen=True)
class LayerInsight:
    """One layer (or expert), measured.

    Attributes:
        update: where the numbers come from.
        kind: as `kinds_of` names it, such as ``q_proj``.
        number: of the layer in the model's depth, or None.
        frobenius_norm, spectral_norm: of ΔW.
        singular_values: of ΔW, greatest first.
        rank_90, rank_99: how many of them hold 90% and 99% of the energy.
        stable_rank: ‖ΔW‖²_F / ‖ΔW‖²₂.
        bias_norm: of s · bias, where B has one.
        magnitude: DoRA's least and greatest m.
        gain: DoRA's least and greatest m / ‖W + s·BA‖, where the base is there.
        beside: the base's weight, where it is there.
    """

    update: LayerUpdate
    kind: str
    number: int | None
    frobenius_norm: float
    spectral_norm: float
    singular_values: tuple[float, ...]
    rank_90: int
    rank_99: int
    stable_rank: float
    bias_norm: float | None = None
    magnitude: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None
    beside: BesideBase | None = None

    @property
    def name(self) -> str:
        """Of the layer, as the base calls it."""
        return self.update.name

    @property
    def relative_norm(self) -> float | None:
        """‖ΔW‖_F / ‖W‖_F."""
        return None if self.beside is None else self.beside.relative_norm

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "layer": self.number,
            "form": self.update.form,
            "shape": self.update.shape,
            "rank": self.update.rank,
            "scale": self.update.s,
            "num_parameters": self.update.num_parameters,
            "frobenius_norm": self.frobenius_norm,
            "spectral_norm": self.spectral_norm,
            "singular_values": self.singular_values,
            "rank_90": self.rank_90,
            "rank_99": self.rank_99,
            "stable_rank": self.stable_rank,
            "bias_norm": self.bias_norm,
            "magnitude": self.magnitude,
            "gain": self.gain,
            "base": None if self.beside is None else self.beside.to_dict(),
        }


@dataclass(frozen=True)
class TrainedInsight:
    """What was trained whole: a saved module's tensor, rows of tokens, or a bias.

    Attributes:
        name, kind, shape: see `TrainedTensor`.
        norm: of its values after training.
        change: ‖trained - base‖ / ‖base‖, where the base has it in this shape.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_parameters: int
    norm: float
    change: float | None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": self.shape,
            "num_parameters": self.num_parameters,
            "norm": self.norm,
            "change": self.change,
        }


@dataclass(frozen=True)
class AdapterInsight:
    """An adapter, measured.

    Attributes:
        folder: where it lies.
        settings: of its config.
        layers: in the order of the model's depth.
        trained: what was trained whole.
        unread: layers whose update cannot be known, with their parameters.
        num_parameters: of all that was trained, in the file.
        file_bytes: of the weights' file.
        dtypes: of its tensors, the most frequent first.
        compared_with: the base's name and folder, or None.
        uncompared: layers that could not be compared, by the reason.
        unknown: names in the file that mean nothing here.
        notes: what a reader of the numbers must know.
    """

    folder: Path
    settings: AdapterSettings
    layers: tuple[LayerInsight, ...]
    trained: tuple[TrainedInsight, ...]
    unread: dict[str, int]
    num_parameters: int
    file_bytes: int
    dtypes: tuple[str, ...]
    compared_with: tuple[str, Path] | None
    uncompared: dict[str, list[str]]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that layers have, ascending; the config's where there is no layer."""
        return tuple(sorted({each.update.rank for each in self.layers})) or (self.settings.r,)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales that layers have, ascending."""
        return tuple(sorted({each.update.s for each in self.layers}))

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        settings = self.settings
        return {
            "folder": str(self.folder),
            "method": settings.method,
            "r": settings.r,
            "ranks": self.ranks,
            "alpha": settings.alpha,
            "scales": self.scales,
            "targets": settings.targets,
            "target_parameters": settings.target_parameters,
            "start": settings.start,
            "start_changes_base": settings.changes_base,
            "base": settings.base,
            "revision": settings.revision,
            "num_parameters": self.num_parameters,
            "file_bytes": self.file_bytes,
            "dtypes": self.dtypes,
            "compared_with": None
            if self.compared_with is None
            else {"name": self.compared_with[0], "folder": str(self.compared_with[1])},
            "layers": [each.to_dict() for each in self.layers],
            "trained": [each.to_dict() for each in self.trained],
            "unread": self.unread,
            "uncompared": self.uncompared,
            "unknown": self.unknown,
            "notes": self.notes,
        }


@torch.no_grad()
def inspect_adapter(
    folder: Path, *, base: BaseWeights | None = None, progress: Progress | None = None
) -> AdapterInsight:
    """Read and measure an adapter.

    Args:
        folder: of the adapter, in PEFT's format.
        base: weights of the model it belongs to.
        progress: told ``(stage, done, total)``.

    Raises:
        InputError: no such folder.
        AdapterError: not an adapter, one of another method, weights that are not finite, or
            tensors that contradict each other.
        CorruptFileError: a file is damaged.
    """
    folder = Path(folder)
    config, tensors = read_adapter(folder)
    settings = read_settings(config, where=folder / CONFIG_FILE)
    weights_file = folder / WEIGHTS_FILE
    found = sort_tensors(tensors, settings)
    _check_holds_something(found, weights_file)
    shape = None if base is None else base.shape
    updates = read_updates(found, settings, where=weights_file, base_shape=shape)
    kinds = kinds_of(layer.name for layer in updates.layers)
    layers: list[LayerInsight] = []
    uncompared: dict[str, list[str]] = {}
    for done, update in enumerate(updates.layers):
        if progress is not None:
            progress("measuring layers", done, len(updates.layers))
        layers.append(_measure(update, kinds[update.name], base, settings, uncompared))
    trained = tuple(_measure_trained(each, base) for each in found.trained)
    num_parameters = (
        sum(each.update.num_parameters for each in layers)
        + sum(each.num_parameters for each in trained)
        + sum(updates.unread.values())
    )
    return AdapterInsight(
        folder=folder,
        settings=settings,
        layers=tuple(layers),
        trained=trained,
        unread=updates.unread,
        num_parameters=num_parameters,
        file_bytes=weights_file.stat().st_size,
        dtypes=_dtypes(tensors.values()),
        compared_with=None if base is None else (base.name, base.folder),
        uncompared=uncompared,
        unknown=tuple(found.unknown),
        notes=(*settings.notes, *updates.notes, *_notes(settings, found)),
    )


def _check_holds_something(found: SortedTensors, where: Path) -> None:
    if found.parts or found.trained:
        return
    what = "holds no tensors" if not found.unknown else "holds no tensors that an adapter has"
    raise AdapterError(
        f"the adapter {what}",
        where=where,
        got=", ".join(found.unknown[:_MAX_NAMES_SHOWN]) or None,
        expected="base_model.model.<module>.lora_A.weight and .lora_B.weight, or the like",
        do="save the adapter again: nothing that was trained is in this file",
    )


def _measure(
    update: LayerUpdate,
    kind: str,
    base: BaseWeights | None,
    settings: AdapterSettings,
    uncompared: dict[str, list[str]],
) -> LayerInsight:
    factors = update.factors()
    svd = factor_svd(factors)
    beside, gain = None, None
    if base is not None:
        found = base.stored_weight(update, fan_in_fan_out=settings.fan_in_fan_out)
        if isinstance(found, str):
            uncompared.setdefault(found, []).append(update.name)
        else:
            stored, is_swapped = found
            beside = beside_base(svd, stored, is_swapped=is_swapped)
            gain = _gain(update, factors, stored.mT if is_swapped else stored)
    sigma = svd.sigma_K
    return LayerInsight(
        update=update,
        kind=kind,
        number=layer_number(update.name),
        frobenius_norm=float(sigma.norm()),
        spectral_norm=float(sigma[0]) if sigma.numel() else 0.0,
        singular_values=tuple(sigma.tolist()),
        rank_90=energy_rank(sigma, 0.90),
        rank_99=energy_rank(sigma, 0.99),
        stable_rank=stable_rank(sigma),
        bias_norm=None if factors.bias is None else float(factors.bias.float().norm()) * factors.s,
        magnitude=None if update.magnitude is None else _range(update.magnitude),
        gain=gain,
        beside=beside,
    )


def _gain(update: LayerUpdate, factors: Factors, weight_OD: Tensor) -> tuple[float, float] | None:
    # Of convolutions and embeddings PEFT takes norms over other sides than rows.
    if update.magnitude is None or update.form != "linear":
        return None
    return _range(magnitude_gain(update.magnitude, factors, weight_OD))


def _range(values: Tensor) -> tuple[float, float]:
    return float(values.float().min()), float(values.float().max())


def _measure_trained(each: TrainedTensor, base: BaseWeights | None) -> TrainedInsight:
    change = None
    was = None if base is None or each.kind == "token rows" else base.tensor(each.name)
    if was is not None and was.shape == each.tensor.shape:
        size = float(was.float().norm())
        change = float((each.tensor.float() - was.float()).norm()) / size if size else None
    return TrainedInsight(
        name=each.name,
        kind=each.kind,
        shape=tuple(each.tensor.shape),
        num_parameters=each.tensor.numel(),
        norm=float(each.tensor.double().norm()),
        change=change,
    )


def _dtypes(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + tensor.numel()
    return tuple(sorted(counts, key=lambda name: -counts[name]))


def _notes(settings: AdapterSettings, found: SortedTensors) -> list[str]:
    notes: list[str] = []
    if settings.changes_base:
        notes.append(
            f"it starts from the base ({settings.start}), which changed with it: ΔW is all that "
            "lies over the changed base, not what training did. Saved in plain form "
            "(path_initial_model_for_weight_conversion), it is what training did"
        )
    if settings.use_dora:
        notes.append("DoRA: ΔW is s·BA alone; what m makes of W + s·BA comes on top")
    if any(".base_layer" in module for module in found.parts):
        notes.append(
            "several parameters of one module are told apart by nesting alone: "
            "experts is the last that the module declares, experts.base_layer the one before"
        )
    if found.copies:
        shown = ", ".join(found.copies[:_MAX_NAMES_SHOWN])
        notes.append(f"weights of the base lie in the file too, untrained: {shown}")
    return notes
