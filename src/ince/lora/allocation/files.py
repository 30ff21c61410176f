"""AdaLoRA adapters whose ranks were given up, into files and back into a model that trains.

A file holds the ranks that are left, and `rank_pattern` says which of them all those are. A
model that trains keeps them all, with zeros for what was given up.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ince.lora.allocation.pattern import Mask, masks_by_module, pattern_of, within
from ince.lora.config import AdaLoraConfig
from ince.lora.layers.adapted import PREFIX
from ince.lora.placement.inject import lora_layers

__all__ = ["from_file", "to_file"]

# By the end of a tensor's name, the dimension in which its ranks lie.
_RANKS_IN = {"lora_A": 0, "lora_E": 0, "lora_B": 1}


def to_file(
    model: nn.Module,
    adapter_name: str,
    config: AdaLoraConfig,
    tensors: Mapping[str, Tensor],
) -> tuple[AdaLoraConfig, dict[str, Tensor]]:
    """Config and tensors as a file has them: without the ranks that were given up.

    Between two allocations the optimizer has moved singular values off zero again. Then the
    ranks are all kept, since the file would not be what the model is.

    Args:
        model: the base, its layers adapted.
        adapter_name: of the adapter.
        config: of the adapter, with the pattern of its training.
        tensors: all of the adapter's, by the names of a file.
    """
    there = dict(_masks_there(model, adapter_name))
    masks = masks_by_module(config)
    local = {name: within(masks[name], kept) for name, kept in there.items() if name in masks}
    if any(_is_used(tensors[_key(name, "lora_E")], mask) for name, mask in local.items()):
        known = {name: kept for name, kept in there.items() if kept is not None}
        return config.model_copy(update={"rank_pattern": pattern_of(known)}), dict(tensors)
    kept_tensors = dict(tensors)
    for name, mask in local.items():
        for suffix, dim in _RANKS_IN.items():
            tensor = tensors[_key(name, suffix)]
            ranks = torch.tensor(mask).nonzero().flatten().to(tensor.device)
            kept_tensors[_key(name, suffix)] = tensor.index_select(dim, ranks)
    return config, kept_tensors


def from_file(
    model: nn.Module,
    adapter_name: str,
    config: AdaLoraConfig,
    tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A file's tensors with zeros for what was given up, as far as the model has such ranks.

    What does not fit is left as it is, for the one who checks shapes.

    Args:
        model: the base, with the adapter in its layers.
        adapter_name: of the adapter.
        config: of the file.
        tensors: of the file.
    """
    filled = dict(tensors)
    masks = masks_by_module(config)
    for name, kept in _masks_there(model, adapter_name):
        mask = masks.get(name)
        if mask is None or (kept is not None and len(kept) != len(mask)):
            continue
        local = within(mask, kept)
        ranks = torch.tensor(local).nonzero().flatten()
        for suffix, dim in _RANKS_IN.items():
            tensor = tensors.get(_key(name, suffix))
            if tensor is None or tensor.ndim != 2 or tensor.shape[dim] != len(ranks):
                continue
            shape = list(tensor.shape)
            shape[dim] = len(local)
            filled[_key(name, suffix)] = tensor.new_zeros(shape).index_copy_(
                dim, ranks.to(tensor.device), tensor
            )
    return filled


def _masks_there(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Mask | None]]:
    for name, layer in lora_layers(model):
        spec = layer.specs.get(adapter_name)
        if spec is not None and spec.variant == "adalora":
            yield name, spec.kept


def _is_used(e: Tensor, mask: Mask) -> bool:
    """Whether a rank that was given up has a singular value."""
    gone = ~torch.tensor(mask, device=e.device).bool()
    return bool(e.flatten()[gone].count_nonzero())


def _key(name: str, suffix: str) -> str:
    return f"{PREFIX}{name}.{suffix}"
