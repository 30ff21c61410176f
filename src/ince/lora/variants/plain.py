"""LoRA itself, arXiv:2106.09685, and rsLoRA, which is another scale: ΔW = s · B A."""

import torch

from ince.lora.factors import Factors
from ince.lora.layers.carrier import Carrier
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.spec import AdapterSpec

__all__ = ["Plain"]


class Plain:
    """A and B, and with ``lora_bias`` a bias of B."""

    def refusal(self, geometry: Geometry) -> str | None:  # noqa: ARG002
        """It goes with every layer."""
        return None

    def shapes(self, geometry: Geometry, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
        """A, B, and B's bias."""
        shapes = geometry.factor_shapes(spec.r)
        if spec.bias:
            shapes["lora_B.bias"] = (geometry.out_features,)
        return shapes

    def factors(self, layer: Carrier, adapter_name: str) -> Factors:
        """s · B A; with a start that is taken off again, s · (B A - B₀ A₀)."""
        spec = layer.specs[adapter_name]
        geometry = layer.geometry
        a_RD, b_OR = geometry.matrices(*layer.factor_parameters(adapter_name))
        start = layer.start_of(adapter_name)
        if start is not None:
            a0_RD, b0_OR = geometry.matrices(*start)
            a_RD, b_OR = torch.cat([a_RD, a0_RD]), torch.cat([b_OR, -b0_OR], dim=1)
        bias = layer.parameter(adapter_name, "lora_B.bias") if spec.bias else None
        return Factors(a_RD, b_OR, spec.scaling, bias)

    def finish(self, layer: Carrier, adapter_name: str) -> None:
        """Nothing."""
