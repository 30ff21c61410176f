"""Places of LoRA's relatives: what VeRA and AdaLoRA put into a layer, and how it starts.

To a model's walks a layer is a layer: both are `LayerPlace` with another start, and VeRA brings
along the matrices that its layers share.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from ince.lora.config import AdaLoraConfig, PeftConfig, VeraConfig
from ince.lora.layers.adapted import Adapted
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.projections import Projections
from ince.lora.layers.wrapper import part_of
from ince.lora.placement.places import LayerPlace
from ince.lora.placement.targets import Target
from ince.lora.variants import ADALORA, VERA

__all__ = ["AdaLoraPlace", "VeraPlace", "layer_places"]


def layer_places(
    config: PeftConfig, targets: Sequence[Target], modules: Mapping[str, nn.Module]
) -> list[LayerPlace]:
    """A place for each target of `config`, in the config's method.

    Args:
        config: of the adapter.
        targets: its layers.
        modules: by dotted name: each layer, or what is around it.
    """
    pairs = [(target, modules[target.name]) for target in targets]
    if isinstance(config, VeraConfig):
        projections = _projections(config, targets)
        if not targets:
            return []
        return [VeraPlace(target, module, projections) for target, module in pairs]
    kind = AdaLoraPlace if isinstance(config, AdaLoraConfig) else LayerPlace
    return [kind(target, module) for target, module in pairs]


@dataclass(frozen=True)
class AdaLoraPlace(LayerPlace):
    """A layer that gets A, E and B."""

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """As `init_lora_weights` says: it is no identity with False."""
        identity = cast(AdaLoraConfig, config).init_lora_weights is not False
        ADALORA.start(part_of(adapted, LoraLayer), adapter_name, identity=identity)


@dataclass(frozen=True)
class VeraPlace(LayerPlace):
    """A layer that gets two vectors, and uses what all layers share."""

    projections: Projections
    """One object for all places of the adapter."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The vectors, and the shared matrices under a name that is no layer's."""
        return super().shapes() | self.projections.shapes()

    def add(
        self, adapted: Adapted, adapter_name: str, given: GivenTensors | None = None
    ) -> Collection[str]:
        """The vectors; what is shared lies where every layer finds it."""
        taken = super().add(adapted, adapter_name, given)
        adapted.state.shared[adapter_name] = self.projections
        return taken

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """As `d_initial` and `init_weights` say."""
        config = cast(VeraConfig, config)
        VERA.start(
            part_of(adapted, LoraLayer),
            adapter_name,
            d_initial=config.d_initial,
            identity=config.init_weights,
        )


def _projections(config: VeraConfig, targets: Sequence[Target]) -> Projections:
    sizes = [(each.geometry.in_features, each.geometry.out_features) for each in targets]
    return Projections(
        config.r,
        max(inputs for inputs, _ in sizes),
        max(outputs for _, outputs in sizes),
        seed=config.projection_prng_key,
        is_saved=config.save_projection,
    )
