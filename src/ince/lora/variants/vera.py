"""VeRA, arXiv:2310.11454: random matrices that are shared and frozen, and vectors that are trained.

``ΔW = diag(b) B diag(d) A`` (eq. 2) with d (r,) and b (out,) of the layer, and the corner of
the shared A and B that it needs (`ince.lora.layers.projections`).

Both vectors go into B's side. So A is a constant to the product, which then need not keep the
layer's input for its gradient, nor compute an (r, in) gradient only to sum it up.
"""

import torch

from ince.lora.factors import Factors
from ince.lora.layers.carrier import Carrier
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.linear import LinearGeometry
from ince.lora.layers.spec import AdapterSpec

__all__ = ["Vera"]

_B, _D = "vera_lambda_b", "vera_lambda_d"


class Vera:
    """b of (O,) and d of (r,)."""

    def refusal(self, geometry: Geometry) -> str | None:
        """The shared matrices have the shape of linear layers."""
        is_linear = isinstance(geometry, LinearGeometry)
        return None if is_linear else "is no linear layer, and VeRA adapts no other"

    def shapes(self, geometry: Geometry, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
        """The two vectors; what is shared is no layer's."""
        return {_B: (geometry.out_features,), _D: (spec.r,)}

    def factors(self, layer: Carrier, adapter_name: str) -> Factors:
        """A, and diag(b) B diag(d)."""
        b, d = layer.parameter(adapter_name, _B), layer.parameter(adapter_name, _D)
        a_RD, b_OR = layer.state.shared[adapter_name].on(b.device)
        geometry = layer.geometry
        a_RD, b_OR = a_RD[:, : geometry.in_features], b_OR[: geometry.out_features]
        return Factors(a_RD, b.unsqueeze(1) * b_OR * d, layer.specs[adapter_name].scaling)

    def finish(self, layer: Carrier, adapter_name: str) -> None:
        """Nothing."""

    @torch.no_grad()
    def start(self, layer: Carrier, adapter_name: str, *, d_initial: float, identity: bool) -> None:
        """b = 0 and d = `d_initial`; or b = 1 and d normal, so that it is no identity."""
        b, d = layer.parameter(adapter_name, _B), layer.parameter(adapter_name, _D)
        # PEFT draws d in any case: the random numbers that come after are the same as there.
        drawn = torch.randn(d.shape, dtype=torch.float32, device="cpu")
        if identity:
            b.zero_()
            d.fill_(d_initial)
        else:
            b.fill_(1.0)
            d.copy_(drawn)
