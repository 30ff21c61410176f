"""DoRA, arXiv:2402.09353: the update turns the weight, a trained magnitude sets its length.

``W' = m · (W + s·BA) / ‖W + s·BA‖`` for each output; the norm is a constant for the gradient
(section 4.3). It is taken in float32 whatever the base is and whatever autocast says, a part of
W at a time, so that a weight in 4 bits is never expanded as a whole. When nothing trains it is
kept until the adapter or the base changes.
"""

import torch
from torch import Tensor

from ince.lora.factors import Factors
from ince.lora.layers.carrier import Carrier
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.spec import AdapterSpec
from ince.lora.variants.plain import Plain

__all__ = ["Dora"]

_KEY = "lora_magnitude_vector"
_SHORTEST = 1e-12


class Dora:
    """A, B, and m of (O,)."""

    def __init__(self) -> None:
        self._plain = Plain()

    def refusal(self, geometry: Geometry) -> str | None:
        """As `Plain`; the geometry itself knows where there is no norm."""
        return self._plain.refusal(geometry)

    def shapes(self, geometry: Geometry, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
        """Of `Plain`, and the magnitude in the shape in which the layer broadcasts it."""
        shapes = self._plain.shapes(geometry, spec)
        shapes[_KEY] = _magnitude_shape(geometry)
        return shapes

    def factors(self, layer: Carrier, adapter_name: str) -> Factors:
        """As `Plain`, with c = m / ‖W + s·BA‖."""
        plain = self._plain.factors(layer, adapter_name)
        m = layer.parameter(adapter_name, _KEY)

        def compute() -> Tensor:
            return m.flatten().float() / row_norms(layer.geometry, plain)

        c = layer.kept(adapter_name, "magnitude", compute)
        return Factors(plain.a_RD, plain.b_OR, plain.s, plain.bias, c)

    def finish(self, layer: Carrier, adapter_name: str) -> None:
        """m = ‖W + s·BA‖: the adapter starts as the base."""
        norm = row_norms(layer.geometry, self._plain.factors(layer, adapter_name))
        m = layer.parameter(adapter_name, _KEY)
        with torch.no_grad():
            m.copy_(norm.view(m.shape))


@torch.no_grad()
def row_norms(geometry: Geometry, factors: Factors) -> Tensor:
    """‖W + s·BA‖ for each output, (O,) float32; an output without weights counts as 1e-12."""
    a_RD, b_OR = factors.a_RD.float(), factors.b_OR.float()
    norms = a_RD.new_zeros(geometry.out_features)
    with torch.autocast(a_RD.device.type, enabled=False):
        for outputs, inputs, weight_OD in geometry.blocks():
            turned = torch.addmm(weight_OD, b_OR[outputs], a_RD[:, inputs], alpha=factors.s)
            length = torch.linalg.vector_norm(turned, dim=1)
            norms[outputs] = torch.hypot(norms[outputs], length)
    return norms.clamp_(min=_SHORTEST)


def _magnitude_shape(geometry: Geometry) -> tuple[int, ...]:
    space = -1 - geometry.channel_dim
    return (1, geometry.out_features, *(1,) * space) if space else (geometry.out_features,)
