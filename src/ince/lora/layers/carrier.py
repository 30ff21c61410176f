"""`Carrier`: what an adapted layer is to its variants, and to what computes and merges it.

It is what they may ask of a `LoraLayer`, which knows them; so that they need not know it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor, nn

from ince.lora.factors import Factors
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState

__all__ = ["Carrier"]


class Carrier(Protocol):
    """A base layer and the adapters in it."""

    state: AdapterState

    @property
    def base_layer(self) -> nn.Module:
        """The layer as it was."""
        ...

    @property
    def geometry(self) -> Geometry:
        """How it multiplies."""
        ...

    @property
    def specs(self) -> Mapping[str, AdapterSpec]:
        """By adapter, those of this layer."""
        ...

    def parameter(self, adapter_name: str, suffix: str) -> Tensor:
        """One tensor of an adapter."""
        ...

    def factor_parameters(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A and B as they are kept."""
        ...

    def start_of(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """What is taken off the base while the adapter is on, as A and B are kept; or None."""
        ...

    def factors(self, adapter_name: str) -> Factors:
        """What an adapter adds, as matrices."""
        ...

    def kept(self, adapter_name: str, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives for the adapter and the base as they are; when serving, once."""
        ...

    def dropout_of(self, adapter_name: str) -> float:
        """The dropout that applies now."""
        ...

    def active_here(self) -> list[str]:
        """The active adapters that are in this layer."""
        ...
