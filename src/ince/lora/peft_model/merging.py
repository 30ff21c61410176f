"""Merging within a model, all layers or none, and into a copy of it."""

import sys
from collections.abc import Sequence

import torch
from torch import nn

from ince.lora.layers.adapted import adapted_modules
from ince.lora.layers.layer import LoraLayer
from ince.lora.merge import merged_model
from ince.quant import Linear4bit

__all__ = ["base_dtype", "merge_in_place", "merged_copy"]


def merge_in_place(layers: Sequence[LoraLayer], adapter_names: Sequence[str]) -> list[str]:
    """Let layers compute with merged weights, in the precision of their base.

    Adapters join those that a layer merged before.

    Returns:
        The names of all that are merged now, in their order.

    Raises:
        AdapterError: a merged weight is not finite. All layers are as they were.
    """
    before = [(layer, list(layer.merged_adapters)) for layer in layers]
    try:
        for layer, merged in before:
            names = list(dict.fromkeys([*merged, *adapter_names]))
            layer.merge(names, layer.geometry.compute_dtype)
    except BaseException:
        for layer, merged in before:
            if not merged:
                layer.unmerge()
            elif layer.merged_adapters != merged:
                layer.merge(merged, layer.geometry.compute_dtype)
        raise
    return sorted({name for layer in layers for name in layer.merged_adapters})


def merged_copy(model: nn.Module, dtype: torch.dtype, progressbar: bool) -> nn.Module:
    """`merged_model`, with a bar on a terminal where one is wanted."""
    if not (progressbar and sys.stderr.isatty()):
        return merged_model(model, dtype)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("merging", total=None)

        def show(num_done: int, num_layers: int) -> None:
            progress.update(task, completed=num_done, total=num_layers)

        return merged_model(model, dtype, progress=show)


def base_dtype(model: nn.Module) -> torch.dtype:
    """In which the base computes: that of its first weight, or a 4-bit base's 16 bits."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            return module.compute_dtype
    adapters = {
        id(tensor)
        for _, adapted in adapted_modules(model)
        for name in adapted.adapter_names()
        for tensor in adapted.tensors(name).values()
    }
    for parameter in model.parameters():
        if id(parameter) not in adapters and parameter.is_floating_point():
            return parameter.dtype
    return torch.bfloat16
