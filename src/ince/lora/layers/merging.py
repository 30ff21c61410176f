"""What an adapted layer merges to: new weights, computed in float32 and rounded once.

Nothing here changes a layer. Several adapters add up as in the forward, each from the base.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.lora.layers.adapted import MergedTensor
from ince.lora.layers.carrier import Carrier

__all__ = ["merged_bias", "merged_tensors", "merged_weight", "weight_change"]


@torch.no_grad()
def merged_weight(layer: Carrier, dtype: torch.dtype, adapter_names: Sequence[str]) -> Tensor:
    """W with adapters in it, in the base's own layout: a new tensor.

    Over a 4-bit base it is not quantized again, since small updates would vanish in the
    rounding.

    Args:
        layer: adapted.
        dtype: of the result.
        adapter_names: those of this layer to merge.

    Raises:
        AdapterError: the merged weight is not finite in `dtype`, or the layer cannot hold it.
    """
    weight_OD = layer.geometry.weight_matrix(torch.float32)
    factors = [layer.factors(name) for name in adapter_names]
    if len(factors) > 1 and any(f.magnitude is not None for f in factors):
        base_OD = weight_OD.clone()
        for f in factors:
            weight_OD += f.fold_into(base_OD.clone()).sub_(base_OD)
    else:
        for f in factors:
            f.fold_into(weight_OD)
    merged = layer.geometry.to_layout(weight_OD.to(dtype))
    if not bool(torch.isfinite(merged).all()):
        raise AdapterError(
            "a merged weight is not finite",
            got=f"dtype {dtype}, adapters {', '.join(adapter_names)}",
            do="merge to bfloat16 or float32, or train with a lower learning rate",
        )
    return merged


@torch.no_grad()
def merged_bias(layer: Carrier, dtype: torch.dtype, adapter_names: Sequence[str]) -> Tensor | None:
    """The bias with adapters in it, a new tensor; or None."""
    bias = layer.geometry.bias
    merged = None if bias is None else bias.detach().float().clone()
    for name in adapter_names:
        if not layer.specs[name].bias:
            continue
        factors = layer.factors(name)
        added = factors.s * cast(Tensor, factors.bias).float()
        if factors.magnitude is not None:
            added = added * factors.magnitude
        merged = added if merged is None else merged + added
    return None if merged is None else merged.to(dtype)


@torch.no_grad()
def weight_change(layer: Carrier, adapter_name: str) -> Tensor:
    """What merging one adapter would add, in the base's own layout, float32."""
    factors = layer.factors(adapter_name)
    if factors.magnitude is None:
        return layer.geometry.to_layout(factors.delta())
    base_OD = layer.geometry.weight_matrix(torch.float32)
    return layer.geometry.to_layout(factors.fold_into(base_OD.clone()).sub_(base_OD))


def merged_tensors(layer: Carrier, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
    """Weight and bias of the plain layer, computed when asked for.

    Raises:
        AdapterError: an adapter has a bias and the base none: the plain model has no place.
    """
    geometry, names = layer.geometry, layer.active_here()
    shape = geometry.weight_shape
    yield MergedTensor(f"{prefix}weight", shape, dtype, lambda: merged_weight(layer, dtype, names))
    if geometry.bias is None:
        biased = [name for name in names if layer.specs[name].bias]
        if biased:
            raise AdapterError(
                "the merged model has no place for the adapter's bias (lora_bias)",
                where=f"{prefix}bias",
                got=f"adapters {', '.join(biased)} over a layer without bias",
                do="merge in memory with merge_and_unload, or keep the adapter apart",
            )
        return

    def compute() -> Tensor:
        return cast(Tensor, merged_bias(layer, dtype, names))

    yield MergedTensor(f"{prefix}bias", (geometry.out_features,), dtype, compute)
