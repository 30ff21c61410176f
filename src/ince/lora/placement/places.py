"""`Place`: one module of a model where a config puts something, and what belongs there.

Finding the places changes nothing. So everything can be checked against them, a config or the
tensors of a file, before the first module is wrapped.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import nn

from ince.lora.config import LoraConfig, PeftConfig
from ince.lora.layers.adapted import PREFIX, Adapted
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import innermost, part_of, put_innermost
from ince.lora.placement.start import start_adapter
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

    def wrap(self, module: nn.Module, state: AdapterState) -> Adapted:
        """`module`, which is what is there by now, adapted for this; itself when it is already."""
        ...

    def add(
        self, adapted: Adapted, adapter_name: str, given: GivenTensors | None = None
    ) -> Collection[str]:
        """Make room for the adapter in it.

        Args:
            adapted: what `wrap` gave.
            adapter_name: of the adapter.
            given: the tensors of an adapter that exists, by full name.

        Returns:
            The names of those that were taken. Others are not yet set, and take gradients.
        """
        ...

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """Set the tensors of a fresh adapter."""
        ...


@dataclass(frozen=True)
class LayerPlace:
    """A layer that gets A and B."""

    target: Target
    module: nn.Module
    """The layer, or what is around it."""

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.target.name

    @property
    def geometry(self) -> Geometry:
        """How the layer multiplies."""
        return self.target.geometry

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A, B, and what the variant has besides."""
        return self._own_shapes

    @cached_property
    def _own_shapes(self) -> dict[str, tuple[int, ...]]:
        target = self.target
        shapes = VARIANTS[target.spec.variant].shapes(target.geometry, target.spec)
        stem = f"{PREFIX}{target.name}."
        return {stem + suffix: shape for suffix, shape in shapes.items()}

    def wrap(self, module: nn.Module, state: AdapterState) -> Adapted:
        """A `LoraLayer`, innermost."""
        layer = innermost(module)
        if isinstance(layer, LoraLayer):
            assert isinstance(module, Adapted)  # it is that layer, or around it
            return module
        return put_innermost(module, LoraLayer(layer, state))

    def add(
        self, adapted: Adapted, adapter_name: str, given: GivenTensors | None = None
    ) -> Collection[str]:
        """A and B."""
        layer = adapted if isinstance(adapted, LoraLayer) else part_of(adapted, LoraLayer)
        if given is None:
            layer.add_adapter(adapter_name, self.target.spec)
            return ()
        layer.add_adapter(adapter_name, self.target.spec, given.under(f"{PREFIX}{self.name}."))
        return self._own_shapes

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """As `init_lora_weights` says."""
        assert isinstance(config, LoraConfig)  # its relatives have places of their own
        start_adapter(part_of(adapted, LoraLayer), adapter_name, config, name=self.name)
