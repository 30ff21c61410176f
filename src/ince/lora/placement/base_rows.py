"""Rows of the base's embeddings that an adapter's file has otherwise.

PEFT writes the whole weight of an adapted embedding into the file, where the adapter's own part
stands beside it, and does so whenever the vocabulary was resized. The base is never
overwritten here. Rows that it has anyway are passed over; those that differ, as new tokens do
that were drawn at random, become rows of the adapter's own.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.config import PeftConfig
from ince.lora.config.family import LoraFamilyConfig
from ince.lora.layers.adapted import PREFIX, base_of, outer_modules, own_parameters
from ince.lora.placement.tied import input_embedding_name, tied_names

__all__ = ["with_rows_of_base"]

_Config = TypeVar("_Config", bound=PeftConfig)

# Of rows that differ: new tokens are few, and another base differs everywhere.
_LARGEST_SHARE = 0.5
_DELTA = "token_adapter.trainable_tokens_delta"
_WEIGHTS = ("base_layer.weight", "token_adapter.base_layer.weight")


def with_rows_of_base(
    model: nn.Module, config: _Config, tensors: Mapping[str, Tensor], where: object
) -> tuple[_Config, dict[str, Tensor]]:
    """A file without the base's embeddings, and with what differs as rows of tokens.

    Args:
        model: the base, with or without adapters.
        config: of the file.
        tensors: of the file.
        where: the file, for errors.

    Returns:
        `config` with the rows that differ in `trainable_token_indices`, and the tensors.

    Raises:
        AdapterError: a weight is of another size than the model's, or of another base.
    """
    left = dict(tensors)
    if not isinstance(config, LoraFamilyConfig) or not any(key.endswith(_WEIGHTS) for key in left):
        return config, left
    weights = {
        name: (weight, given)
        for name, module in outer_modules(model)
        if (weight := own_parameters(base_of(module)).get("weight")) is not None
        for key in (f"{PREFIX}{name}.{end}" for end in _WEIGHTS)
        if (given := left.pop(key, None)) is not None
    }
    if not weights:
        return config, left
    tokens = _by_module(model, config)
    group = tied_names(model).get(input_embedding_name(model) or "", ())
    changed = False
    for name, (weight, given) in weights.items():
        is_tied = name in group[1:] and group[0] in weights and name not in tokens
        if is_tied and torch.equal(given, weights[group[0]][1]):
            left.pop(f"{PREFIX}{name}.{_DELTA}", None)  # PEFT writes the embedding's rows again
            continue
        if given.shape != weight.shape:
            raise AdapterError(
                "the adapter brings embeddings for another vocabulary",
                where=where if where is None else f"{where}: {name}",
                got=tuple(given.shape),
                expected=tuple(weight.shape),
                do=f"call model.resize_token_embeddings({given.shape[0]}) first",
            )
        known = tokens.get(name, ())
        rows = [row for row in _other_rows(given, weight) if row not in set(known)]
        if len(rows) > _LARGEST_SHARE * given.shape[0]:
            raise AdapterError(
                "the adapter was trained over other embeddings than the model has",
                where=where if where is None else f"{where}: {name}",
                got=f"{len(rows)} of {given.shape[0]} rows differ",
                do="load it on the base it was trained on",
            )
        if rows:
            key = f"{PREFIX}{name}.{_DELTA}"
            parts = [left[key]] if key in left else []
            left[key] = torch.cat(
                [*parts, given[rows].to(parts[0].dtype if parts else given.dtype)]
            )
            tokens[name] = (*known, *rows)
            changed = True
    if not changed:
        return config, left
    return config.model_copy(update={"trainable_token_indices": tokens}), left


def _by_module(model: nn.Module, config: LoraFamilyConfig) -> dict[str, tuple[int, ...]]:
    tokens = config.trainable_token_indices
    if tokens is None:
        return {}
    if not isinstance(tokens, Mapping):
        return {input_embedding_name(model) or "": tokens}
    return {
        name: ids
        for name, _ in outer_modules(model)
        for end, ids in tokens.items()
        if name and name.endswith(end)
    }


@torch.no_grad()
def _other_rows(given: Tensor, weight: Tensor) -> list[int]:
    """The rows that differ by more than the coarser of the two precisions rounds."""
    own = weight.detach()
    coarser = min(given.dtype, own.dtype, key=lambda dtype: -torch.finfo(dtype).eps)
    theirs, ours = given.to(own.device, coarser), own.to(coarser)
    return (theirs != ours).any(dim=1).nonzero().flatten().tolist()
