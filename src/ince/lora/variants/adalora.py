"""AdaLoRA, arXiv:2303.10512: the update as a singular value decomposition that is trained.

``ΔW = s · B diag(E) A`` (eq. 3) with E (r, 1) the singular values, and rows of A and columns
of B that a regularizer keeps near orthogonal. Which ranks are worth keeping is
`ince.lora.allocation`'s to say; one that was given up has E = 0.
"""

import torch
from torch import Tensor

from ince.lora.factors import Factors
from ince.lora.layers.carrier import Carrier
from ince.lora.layers.convolution import ConvolutionGeometry
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.linear import LinearGeometry
from ince.lora.layers.spec import AdapterSpec

__all__ = ["AdaLora"]

_A, _E, _B = "lora_A", "lora_E", "lora_B"
_DEVIATION = 0.02
_IMAGE_DIMS = 2


class AdaLora:
    """A of (r, D), E of (r, 1), B of (O, r)."""

    def refusal(self, geometry: Geometry) -> str | None:
        """What PEFT has no AdaLoRA for could never be loaded there."""
        if isinstance(geometry, LinearGeometry):
            return None
        if isinstance(geometry, ConvolutionGeometry):
            if len(geometry.kernel) == _IMAGE_DIMS and geometry.base.groups == 1:
                return None
            return "is a convolution, of which AdaLoRA adapts Conv2d without groups"
        return "is no linear layer or Conv2d, and AdaLoRA adapts no other"

    def shapes(self, geometry: Geometry, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
        """As matrices, whatever the layer is."""
        return {
            _A: (spec.r, geometry.in_features),
            _E: (spec.r, 1),
            _B: (geometry.out_features, spec.r),
        }

    def factors(self, layer: Carrier, adapter_name: str) -> Factors:
        """diag(E) A, and B."""
        a, e, b = self.parts(layer, adapter_name)
        return Factors(a * e, b, layer.specs[adapter_name].scaling)

    def parts(self, layer: Carrier, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """A, E and B, the parameters themselves."""
        return (
            layer.parameter(adapter_name, _A),
            layer.parameter(adapter_name, _E),
            layer.parameter(adapter_name, _B),
        )

    def finish(self, layer: Carrier, adapter_name: str) -> None:
        """Nothing."""

    @torch.no_grad()
    def start(self, layer: Carrier, adapter_name: str, *, identity: bool) -> None:
        """A and B normal of deviation 0.02 and E = 0; or all of deviation 1, no identity."""
        a, e, b = self.parts(layer, adapter_name)
        # In PEFT's order, with the numbers that it draws and drops: a seed gives the same.
        drawn = [torch.randn(t.shape, dtype=torch.float32, device="cpu") for t in (a, e, b)]
        torch.randn(1, device="cpu")
        if identity:
            drawn[1].zero_()
            for tensor in (drawn[0], drawn[2]):
                tensor.normal_(mean=0.0, std=_DEVIATION)
        for parameter, value in zip((a, e, b), drawn, strict=True):
            parameter.copy_(value)
