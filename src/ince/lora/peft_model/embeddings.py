"""Embeddings of the base in an adapter's file, as PEFT writes them there.

PEFT adds the weights of input and output embedding to a file when they are adapted, or when the
vocabulary was resized. A base is never overwritten here: weights that it has anyway are passed
over, and others become modules that the adapter brings along, as those in ``modules_to_save``
do, under the same names in the file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, InputError
from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import PREFIX, Adapted, outer_modules
from ince.lora.placement.targets import matches

__all__ = ["embeddings_to_save", "take_embeddings"]

_Config = TypeVar("_Config", bound=PeftConfig)

# How the names of most tensors end, none of which is an embedding of the base.
_OF_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")


def embeddings_to_save(
    model: nn.Module, config: PeftConfig, wanted: bool | str
) -> dict[str, Tensor]:
    """The base's embeddings by the names that PEFT gives them in a file.

    Args:
        model: the base.
        config: of the adapter.
        wanted: True, False, or "auto": when the vocabulary is another than that of the base's
            own config, which is looked for in a folder here, not on the hub.

    Raises:
        InputError: `wanted` is something else.
    """
    if wanted == "auto":
        wanted = _is_resized(model, config)
    if not isinstance(wanted, bool):
        raise InputError("not a choice", got=wanted, expected="True, False or 'auto'")
    if not wanted:
        return {}
    return {
        f"{PREFIX}{stem}.weight": weight.detach()
        for name, base, is_adapted in _embeddings(model)
        for stem in (f"{name}.base_layer" if is_adapted else name,)
        if isinstance(weight := getattr(base, "weight", None), Tensor)
        and not matches(config.modules_to_save or (), name)
    }


def take_embeddings(
    model: nn.Module, config: _Config, tensors: Mapping[str, Tensor], where: object
) -> tuple[_Config, dict[str, Tensor]]:
    """What is left of a file when the base's embeddings are taken out of it.

    Returns:
        `config`, with embeddings that differ from the base's in `modules_to_save`; and the
        tensors without those that the base has. What differs of embeddings that are adapted
        too is left in them.

    Raises:
        AdapterError: embeddings of another size.
    """
    left = dict(tensors)
    brought: list[str] = []
    if all(key.endswith(_OF_FACTORS) for key in left):
        return config, left
    for name, base, _ in _embeddings(model):
        own = getattr(base, "weight", None)
        if not isinstance(own, Tensor) or matches(config.modules_to_save or (), name):
            continue
        for key in (f"{PREFIX}{name}.weight", f"{PREFIX}{name}.base_layer.weight"):
            given = left.get(key)
            if given is None:
                continue
            if given.shape == own.shape and torch.equal(given.to(own.device, own.dtype), own):
                del left[key]
            elif given.shape != own.shape:
                raise AdapterError(
                    "the adapter brings embeddings for another vocabulary",
                    where=f"{where}: {key}",
                    got=str(tuple(given.shape)),
                    expected=f"{tuple(own.shape)}, as the model has",
                    do=f"call model.resize_token_embeddings({given.shape[0]}) first",
                )
            elif not key.endswith(".base_layer.weight"):
                brought.append(name)
            # Of adapted modules, rows that differ become the adapter's (`placement.base_rows`).
    if not brought:
        return config, left
    modules = tuple(dict.fromkeys([*(config.modules_to_save or ()), *brought]))
    return config.model_copy(update={"modules_to_save": modules}), left


def _embeddings(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name in the base, module of the base, and whether it is adapted: input and output."""
    found: list[object] = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        get = getattr(model, getter, None)
        found.append(get() if callable(get) else None)
    for name, module in outer_modules(model):
        if any(module is each for each in found):
            is_adapted = isinstance(module, Adapted)
            yield name, module.base_layer if isinstance(module, Adapted) else module, is_adapted


def _is_resized(model: nn.Module, config: PeftConfig) -> bool:
    path = Path(config.base_model_name_or_path or "") / "config.json"
    mine = getattr(getattr(model, "config", None), "vocab_size", None)
    if not config.base_model_name_or_path or not isinstance(mine, int) or not path.is_file():
        return False
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(values, dict) and values.get("vocab_size", mine) != mine
