"""What a variant of LoRA is: a small Protocol."""

from typing import Protocol

from ince.lora.factors import Factors
from ince.lora.layers.carrier import Carrier
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.spec import AdapterSpec

__all__ = ["Variant"]


class Variant(Protocol):
    """Which tensors an adapter has in a layer, and what they come to."""

    def refusal(self, geometry: Geometry) -> str | None:
        """Why there is none for such a layer, to follow its name in a sentence; or None."""
        ...

    def shapes(self, geometry: Geometry, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors of one layer, by the end of their names in the file."""
        ...

    def factors(self, layer: Carrier, adapter_name: str) -> Factors:
        """The update as matrices; gradients flow through them to the parameters."""
        ...

    def finish(self, layer: Carrier, adapter_name: str) -> None:
        """Set what depends on the started A and B; called once for a fresh adapter."""
        ...
