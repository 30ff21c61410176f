"""``layer_replication``: a deeper model over the same weights.

Ranges [start, end) of layers, one after the other, make up the new list of layers; a layer that
is in two of them is there twice, with one weight and an adapter for each time. The base itself
becomes deeper, for all adapters, also when they are disabled. It is as it was once the last
adapter is taken out.

Beyond PEFT, each layer's kind of attention goes with it (`layer_types` of the model's config).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ince.errors import AdapterError, ConfigError, Problem
from ince.lora.layers.adapted import Adapted

__all__ = ["is_replicated", "replicate", "replication_of", "restore_layers"]

_KEY = "_replication"
# Where models keep their list of layers: of Llama and most others, of BERT, of Falcon and GPT-2.
_LISTS = (("layers",), ("encoder", "layer"), ("h",))


@dataclass(frozen=True)
class _Replication:
    """What `restore_layers` needs."""

    ranges: tuple[tuple[int, int], ...]
    owner: nn.Module
    attribute: str
    prefix: str
    layers: nn.ModuleList
    config_values: dict[str, Any]

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """A copy of the model has its layers for good."""


def replication_of(model: nn.Module) -> tuple[tuple[int, int], ...] | None:
    """The ranges of which the model's layers are made up, or None for its own."""
    found: _Replication | None = vars(model).get(_KEY)
    return None if found is None else found.ranges


def is_replicated(model: nn.Module, name: str) -> bool:
    """Whether a module lies in layers that may be there twice, with weights that are shared."""
    found: _Replication | None = vars(model).get(_KEY)
    if found is None:
        return False
    return name.startswith(found.prefix)


def replicate(model: nn.Module, ranges: Sequence[tuple[int, int]] | None) -> bool:
    """Make `model` deeper, in place; its weights are shared, none is copied.

    Args:
        model: the base, with or without adapters.
        ranges: as the config says; None leaves it as it is.

    Returns:
        Whether anything changed.

    Raises:
        ConfigError: no list of layers is found, or a range is not in it.
        AdapterError: there are adapters over other layers.
    """
    wanted = None if ranges is None else tuple((start, end) for start, end in ranges)
    there = replication_of(model)
    if wanted == there:
        return False
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise AdapterError(
            "adapters of one model must have the same layer_replication",
            got=wanted,
            expected=there,
            do="put this adapter on a base of its own",
        )
    restore_layers(model)
    if wanted is None:
        return there is not None
    owner, attribute, layers = _layers_of(model)
    outside = [pair for pair in wanted if pair[1] > len(layers)]
    if outside:
        raise ConfigError(
            "layer_replication names layers that the model does not have",
            where=type(model).__name__,
            problems=[Problem("layer_replication", str(list(pair))) for pair in outside],
            expected=f"ends up to {len(layers)}",
        )
    order = [number for start, end in wanted for number in range(start, end)]
    config: Any = getattr(model, "config", None)
    values = {
        name: getattr(config, name)
        for name in ("num_hidden_layers", "layer_types")
        if getattr(config, name, None) is not None
    }
    prefix = next(name for name, module in model.named_modules() if module is layers) + "."
    vars(model)[_KEY] = _Replication(wanted, owner, attribute, prefix, layers, values)
    setattr(owner, attribute, nn.ModuleList(_again(layers[i], at) for at, i in enumerate(order)))
    if "num_hidden_layers" in values:
        config.num_hidden_layers = len(order)
    if "layer_types" in values:
        config.layer_types = [values["layer_types"][number] for number in order]
    return True


def restore_layers(model: nn.Module) -> None:
    """Give a model its own layers again, if it has others."""
    found: _Replication | None = vars(model).pop(_KEY, None)
    if found is not None:
        setattr(found.owner, found.attribute, found.layers)
        for name, value in found.config_values.items():
            setattr(getattr(model, "config"), name, value)  # noqa: B009  not every module has one


def _layers_of(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    inner: nn.Module = model
    for name in ("model", "model", "bert", "transformer"):
        inside = getattr(inner, name, None)
        inner = inside if isinstance(inside, nn.Module) else inner
    for *path, attribute in _LISTS:
        owner: object = inner
        for part in path:
            owner = getattr(owner, part, None)
        layers: object = getattr(owner, attribute, None)
        if isinstance(owner, nn.Module) and isinstance(layers, nn.ModuleList):
            return owner, attribute, layers
    raise ConfigError(
        "the model's list of layers is not found, so that it cannot be replicated",
        where=type(model).__name__,
        expected="a model like Llama, BERT or Falcon",
    )


def _again(layer: nn.Module, at: int) -> nn.Module:
    """`layer` as another module, over the same weights, that knows its place."""
    shared: list[object] = [*layer.parameters(), *layer.buffers()]
    shared += [vars(module)["config"] for module in layer.modules() if "config" in vars(module)]
    copied = copy.deepcopy(layer, {id(each): each for each in shared})
    for module in copied.modules():
        if "layer_idx" in vars(module):
            vars(module)["layer_idx"] = at
    return copied
