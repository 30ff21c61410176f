"""Adapters in the precision of their base, where float32 was declined."""

from torch import nn

from ince.lora.placement.inject import lora_layers

__all__ = ["in_base_precision"]


def in_base_precision(model: nn.Module, adapter_name: str) -> None:
    """Round A and B to what their layers compute in: half the memory; not to be trained."""
    for _, layer in lora_layers(model):
        dtype = layer.geometry.compute_dtype
        for tensor in layer.tensors(adapter_name).values():
            tensor.data = tensor.data.to(dtype)
