"""`Place`: one module of a model where a config puts something, and what belongs there.

Finding the places changes nothing. So everything can be checked against them, a config or the
tensors of a file, before the first module is wrapped.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ince.lora.layers.adapted import PREFIX, Adapted
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.state import AdapterState
from ince.lora.placement.targets import Target
from ince.lora.variants import VARIANTS

__all__ = ["LayerPlace", "Place"]


class Place(Protocol):
    """Where something of an adapter goes."""

    @property
    def name(self) -> str:
        """Dotted name of the module in the base."""
        ...

    @property
    def module(self) -> nn.Module:
        """The module there now, adapted or not."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What an adapter's file holds for this place: shapes by full name."""
        ...

    def wrap(self, state: AdapterState) -> Adapted:
        """The module adapted, without this adapter yet; itself when it is adapted already."""
        ...

    def add(self, adapted: Adapted, adapter_name: str) -> None:
        """Make room for the adapter in it; its tensors are not yet set."""
        ...


@dataclass(frozen=True)
class LayerPlace:
    """A layer that gets A and B."""

    target: Target

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.target.name

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.target.layer

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A, B, and what the variant has besides."""
        layer, spec = self.target.layer, self.target.spec
        geometry = layer.geometry if isinstance(layer, LoraLayer) else geometry_of(layer)
        assert geometry is not None  # of a target
        shapes = VARIANTS[spec.variant].shapes(geometry, spec)
        return {f"{PREFIX}{self.name}.{suffix}": shape for suffix, shape in shapes.items()}

    def wrap(self, state: AdapterState) -> Adapted:
        """A `LoraLayer`."""
        layer = self.target.layer
        return layer if isinstance(layer, LoraLayer) else LoraLayer(layer, state)

    def add(self, adapted: Adapted, adapter_name: str) -> None:
        """A and B."""
        assert isinstance(adapted, LoraLayer)
        adapted.add_adapter(adapter_name, self.target.spec)
