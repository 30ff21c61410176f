"""Merge adapters into 4-bit weights, and measure what of them survives the rounding.

A 4-bit weight has few values to choose from. An update that is smaller than the steps between
them rounds away: with ‖ΔW‖ at 1.6% of ‖W‖ not one code may change. So a merge into 4 bits says
for every layer what part of the update is in the new weight; merging to 16 bits loses none.

    wanted    ΔW = c (W + s·BA) - W
    realized  Δ' = Q(W + ΔW) - W,  with W as the packed weight dequantizes
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.base_identity import forget_origin
from ince.lora.layers.adapted import Adapted, base_of, outer_modules, plain_model
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.state import active_for_now
from ince.lora.placement.inject import adapter_names as names_in
from ince.lora.placement.inject import state_of
from ince.lora.placement.names import check_known
from ince.quant import Experts4bit, Linear4bit

__all__ = ["FAITHFUL", "LayerSurvival", "LostUpdateWarning", "Survival", "merge_into_4bit"]

FAITHFUL = 0.99
"""The cosine of wanted and realized update under which a merge is said to have lost something."""


class LostUpdateWarning(UserWarning):
    """A merge into 4 bits lost a part of the adapter."""


@dataclass(frozen=True)
class LayerSurvival:
    """What became of one layer's update.

    Attributes:
        name: of the layer.
        share: ‖ΔW‖ / ‖W‖, how large the update was.
        cosine: of ΔW and Δ'; 0 where nothing changed, 1 where all is there.
        relative_norm: ‖Δ'‖ / ‖ΔW‖.
        changed: share of the 4-bit codes that are others now.
    """

    name: str
    share: float
    cosine: float
    relative_norm: float
    changed: float


@dataclass(frozen=True)
class Survival:
    """What became of an adapter, layer by layer."""

    layers: tuple[LayerSurvival, ...]

    @property
    def lowest(self) -> LayerSurvival:
        """The layer that lost most."""
        return min(self.layers, key=lambda layer: layer.cosine)

    @property
    def mean_cosine(self) -> float:
        """Over the layers."""
        return sum(layer.cosine for layer in self.layers) / len(self.layers)

    @property
    def is_faithful(self) -> bool:
        """Whether every layer has its update, by `FAITHFUL`."""
        return self.lowest.cosine >= FAITHFUL

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "is_faithful": self.is_faithful,
            "mean_cosine": self.mean_cosine,
            "layers": [
                {
                    "name": layer.name,
                    "share": layer.share,
                    "cosine": layer.cosine,
                    "relative_norm": layer.relative_norm,
                    "changed": layer.changed,
                }
                for layer in self.layers
            ],
        }


@torch.no_grad()
def merge_into_4bit(
    model: nn.Module, adapter_names: Sequence[str] | None = None
) -> tuple[nn.Module, Survival]:
    """A new plain model whose 4-bit layers have the active adapters in them, and what survived.

    Layers that were not in 4 bits are merged in their own precision, which loses nothing that
    this precision can hold, and are not measured.

    Args:
        model: a `PeftModel`, or a plain model with adapters; left as it is.
        adapter_names: to merge; by default the active ones.

    Warns:
        LostUpdateWarning: a layer's cosine is under `FAITHFUL`.

    Raises:
        AdapterError: no adapted layer is in 4 bits; or a merged weight is not finite.
    """
    model = plain_model(model)
    acting = contextlib.nullcontext()
    if adapter_names is not None:
        known = names_in(model)
        for name in adapter_names:
            check_known(name, known)
        acting = active_for_now(state_of(model), adapter_names)
    with acting:
        memo, measured = _merged_modules(model)
    if not measured:
        raise AdapterError(
            "there is nothing to merge into 4 bits",
            got="no active adapter on a 4-bit layer",
            do="merge to 16 bits",
        )
    survival = Survival(tuple(measured))
    if not survival.is_faithful:
        lowest = survival.lowest
        warnings.warn(
            f"merging into 4 bits lost a part of the adapter: of {lowest.name} the realized "
            f"update has cosine {lowest.cosine:.2f} with the wanted one, "
            f"{survival.mean_cosine:.2f} on average. Merge to 16 bits to keep all of it.",
            LostUpdateWarning,
            stacklevel=2,
        )
    merged = copy.deepcopy(model, memo)
    forget_origin(merged)  # its weights are in no file
    return merged, survival


def _merged_modules(model: nn.Module) -> tuple[dict[int, object], list[LayerSurvival]]:
    """Every adapted module merged, by the address of what it replaces, and what survived."""
    memo: dict[int, object] = {}
    measured: list[LayerSurvival] = []
    for name, module in outer_modules(model):
        if not isinstance(module, Adapted):
            continue
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, Linear4bit):
            names = module.active_here()
            memo[id(module)], survival = _requantized(name, module, module.base_layer, names)
            if names:
                measured.append(survival)
        elif isinstance(base_of(module), Linear4bit):
            raise AdapterError(
                "a 4-bit layer with more than A and B cannot be merged into 4 bits",
                where=name,
                got=type(module).__name__,
                do="merge to 16 bits",
            )
        elif any(isinstance(each, Experts4bit) for each in base_of(module).children()):
            raise AdapterError(
                "adapted experts cannot be merged into 4 bits",
                where=name,
                do="merge to 16 bits",
            )
        else:
            memo[id(module)] = module.merged_module(_dtype_of(module))
    return memo, measured


def _requantized(
    name: str, layer: LoraLayer, base: Linear4bit, adapter_names: Sequence[str]
) -> tuple[Linear4bit, LayerSurvival]:
    bias = layer.merged_bias(base.compute_dtype, adapter_names)
    if not adapter_names:
        # Quantizing what was quantized need not give the same scales: nothing is to change.
        return copy.deepcopy(base), LayerSurvival(name, 0.0, 1.0, 1.0, 0.0)
    merged = layer.merged_weight(torch.float32, adapter_names)
    packed = Linear4bit.from_weight(merged, bias, config=base.config, name=name)
    before = base.dequantize(torch.float32)
    wanted = merged.sub_(before)
    realized = packed.dequantize(torch.float32).sub_(before)
    wanted_norm, realized_norm = _norm(wanted), _norm(realized)
    norms = wanted_norm * realized_norm
    inner = float(torch.sum(wanted * realized, dtype=torch.float64))
    survival = LayerSurvival(
        name=name,
        share=wanted_norm / max(_norm(before), 1e-30),
        # An update of nothing is there when nothing changed.
        cosine=inner / norms if norms > 0 else float(wanted_norm == realized_norm),
        relative_norm=realized_norm / wanted_norm if wanted_norm > 0 else 1.0 + realized_norm,
        changed=_changed(packed.packed, base.packed, base.num_weights),
    )
    packed.train(layer.training)
    return packed, survival


def _norm(matrix: Tensor) -> float:
    return math.sqrt(float(torch.sum(matrix * matrix, dtype=torch.float64)))


def _changed(after: Tensor, before: Tensor, num_codes: int) -> float:
    different = after ^ before
    num_changed = int(((different & 0xF) != 0).sum()) + int(((different >> 4) != 0).sum())
    return num_changed / num_codes


def _dtype_of(module: Adapted) -> torch.dtype:
    for tensor in base_of(module).parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.bfloat16
