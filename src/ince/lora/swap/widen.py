"""Give an adapter a higher rank without changing what it computes: zero rows and columns."""

from dataclasses import replace

import torch
from torch import nn

from ince.lora.layers.parameters import put_parameter
from ince.lora.placement.inject import lora_layers

__all__ = ["widen"]


@torch.no_grad()
def widen(model: nn.Module, adapter_name: str, r: int) -> None:
    """Make every layer of an adapter of rank `r`, in place; its scale stays.

    Args:
        model: a plain model with the adapter.
        adapter_name: of the adapter.
        r: at least the rank of every layer.
    """
    for _, layer in lora_layers(model):
        spec = layer.specs.get(adapter_name)
        if spec is None or spec.r == r:
            continue
        shapes = layer.geometry.factor_shapes(r)
        a_suffix, b_suffix, *_ = shapes
        for suffix, dim in ((a_suffix, 0), (b_suffix, 1)):
            old = layer.parameter(adapter_name, suffix)
            wide = torch.zeros(shapes[suffix], dtype=old.dtype, device=old.device)
            wide.narrow(dim, 0, spec.r).copy_(old)
            bias = layer.tensors(adapter_name).get("lora_B.bias") if suffix == b_suffix else None
            put_parameter(layer, adapter_name, suffix, wide)
            if bias is not None:
                put_parameter(layer, adapter_name, "lora_B.bias", bias.detach())
            layer.parameter(adapter_name, suffix).requires_grad_(old.requires_grad)
        layer.specs[adapter_name] = replace(spec, r=r)
