"""DoRA, arXiv:2402.09353: the update turns the weight, a trained magnitude sets its length.

``W' = m · (W + s·BA) / ‖W + s·BA‖`` for each output row; the norm is a constant for the
gradient (section 4.3). The norm is had from thin products, without a second matrix of the
weight's size:

    ‖w + s·bA‖² = ‖w‖² + 2s · b·(A w) + s² · b (A Aᵀ) bᵀ

While nothing trains it is kept until A or B change.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ince.lora.factors import Factors
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.spec import AdapterSpec
from ince.lora.variants.plain import Plain

if TYPE_CHECKING:
    from ince.lora.layers.layer import LoraLayer

__all__ = ["Dora"]

_KEY = "lora_magnitude_vector"


class Dora:
    """A, B, and m of (O,)."""

    def __init__(self) -> None:
        self._plain = Plain()

    def shapes(self, geometry: Geometry, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
        """Of `Plain`, and the magnitude in the shape in which the layer broadcasts it."""
        shapes = self._plain.shapes(geometry, spec)
        shapes[_KEY] = _magnitude_shape(geometry, shapes)
        return shapes

    def factors(self, layer: "LoraLayer", adapter_name: str) -> Factors:
        """As `Plain`, with c = m / ‖W + s·BA‖."""
        plain = self._plain.factors(layer, adapter_name)
        norm = layer.kept(adapter_name, "row_norm", lambda: row_norms(layer.geometry, plain))
        m = layer.parameter(adapter_name, _KEY).flatten()
        return Factors(plain.a_RD, plain.b_OR, plain.s, plain.bias, m / norm.to(m.dtype))

    def finish(self, layer: "LoraLayer", adapter_name: str) -> None:
        """m = ‖W + s·BA‖: the adapter starts as the base."""
        norm = row_norms(layer.geometry, self._plain.factors(layer, adapter_name))
        m = layer.parameter(adapter_name, _KEY)
        with torch.no_grad():
            m.copy_(norm.view(m.shape))


@torch.no_grad()
def row_norms(geometry: Geometry, factors: Factors) -> Tensor:
    """‖W + s·BA‖ for each output, (O,) float32."""
    weight_OD = geometry.weight_matrix(torch.float32)
    a_RD, b_OR = factors.a_RD.float(), factors.b_OR.float()
    cross_OR = weight_OD @ a_RD.t()
    squares = (weight_OD * weight_OD).sum(1)
    squares += 2 * factors.s * (b_OR * cross_OR).sum(1)
    squares += factors.s**2 * (b_OR * (b_OR @ (a_RD @ a_RD.t()))).sum(1)
    return squares.clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()


def _magnitude_shape(geometry: Geometry, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    if geometry.channel_dim == -1:
        return (geometry.out_features,)
    num_kernel_dims = len(shapes["lora_A.weight"]) - 2
    return (1, geometry.out_features, *(1,) * num_kernel_dims)
