"""Put adapters into a model, and carry their tensors in and out by PEFT's names.

Everything is checked before anything is changed: a config or a set of tensors that does not
fit leaves the model as it was.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, Problem, did_you_mean
from ince.lora.config import LoraConfig
from ince.lora.layer import LoraLinear
from ince.lora.targets import Target, find_targets, resolve

__all__ = [
    "adapter_tensors",
    "check_adapter_name",
    "inject",
    "inject_tensors",
    "load_adapter_tensors",
    "lora_layers",
    "targets_in",
]

_PREFIX = "base_model.model."
_MAX_PROBLEMS_SHOWN = 12
_MAX_NAME_CHARACTERS = 120
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def inject(model: nn.Module, config: LoraConfig, adapter_name: str = "default") -> LoraConfig:
    """Freeze `model` and add a new adapter to the layers that `config` means, in place.

    Random numbers are drawn from torch's global generator, in the model's order.

    Returns:
        The config as resolved: `target_modules` as the list of names that were meant.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: there is an adapter of this name already, or the name cannot be used.
    """
    targets = find_targets(model, config)
    return _inject(model, config, adapter_name, targets, init=config.init_lora_weights)


def inject_tensors(
    model: nn.Module,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    adapter_name: str = "default",
    *,
    where: object = None,
) -> LoraConfig:
    """Add an adapter that exists: `inject`, with its weights from `tensors`.

    Args:
        model: the base, with or without other adapters.
        config: of the adapter, as in its file.
        tensors: by PEFT's names, every one of which must be used.
        adapter_name: its name in the model, which is not in the tensors' names.
        where: the file, for messages.

    Raises:
        ConfigError, AdapterError: as `inject`; or tensors are missing, left over or of
            another shape. The model is as it was.
    """
    targets = find_targets(model, config, strict=False)
    _check_tensors(targets, tensors, where)
    # Every weight is about to be replaced: no random numbers are needed.
    resolved = _inject(model, config, adapter_name, targets, init=None)
    _copy_tensors(targets_in(model, adapter_name), tensors, adapter_name)
    return resolved


def load_adapter_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    adapter_name: str = "default",
    *,
    where: object = None,
) -> None:
    """Overwrite the weights of an adapter that is in the model, as when a run continues.

    Raises:
        AdapterError: no such adapter, or the tensors do not fit; nothing was changed.
    """
    targets = targets_in(model, adapter_name)
    if not targets:
        raise AdapterError(
            f"the model has no adapter {adapter_name!r}",
            got=sorted({name for _, layer in lora_layers(model) for name in layer.scaling}),
        )
    _check_tensors(targets, tensors, where)
    _copy_tensors(targets, tensors, adapter_name)


def adapter_tensors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """An adapter's weights by PEFT's names, detached, not copied."""
    tensors: dict[str, Tensor] = {}
    for target in targets_in(model, adapter_name):
        key_a, key_b = _keys(target)
        assert isinstance(target.layer, LoraLinear)
        a_RD, b_OR = target.layer.factors(adapter_name)
        tensors[key_a], tensors[key_b] = a_RD.detach(), b_OR.detach()
    return tensors


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers of a plain model (not of a `PeftModel`), by dotted name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def targets_in(model: nn.Module, adapter_name: str) -> list[Target]:
    """The layers that an adapter is in, in the model's order."""
    return [
        Target(name, layer, layer.r[adapter_name], layer.lora_alpha[adapter_name])
        for name, layer in lora_layers(model)
        if adapter_name in layer.scaling
    ]


def check_adapter_name(adapter_name: str) -> None:
    """Refuse names that cannot be a folder and a module key.

    Raises:
        AdapterError: empty, with other characters than letters, digits, ``_`` and ``-``, or
            the name of a method of torch's module dictionary.
    """
    if _ADAPTER_NAME.fullmatch(adapter_name) is None or hasattr(nn.ModuleDict, adapter_name):
        raise AdapterError(
            "not a usable adapter name",
            got=adapter_name,
            expected="letters, digits, _ and -, beginning with a letter or digit",
        )


def _inject(
    model: nn.Module,
    config: LoraConfig,
    adapter_name: str,
    targets: Sequence[Target],
    *,
    init: bool | str | None,
) -> LoraConfig:
    check_adapter_name(adapter_name)
    if targets_in(model, adapter_name):
        raise AdapterError(
            f"the model has an adapter {adapter_name!r} already",
            do="give this one another name, or load the base anew",
        )
    resolved = resolve(model, config, targets)
    if not any(True for _ in lora_layers(model)):
        model.requires_grad_(False)
    places = _places(model)
    for target in targets:
        layer = target.layer
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer)
            layer.train(model.training)
            for place in places[id(target.layer)]:
                model.set_submodule(place, layer, strict=True)
        layer.add_adapter(
            adapter_name,
            r=target.r,
            alpha=target.alpha,
            scaling=config.scaling(target.r, target.alpha),
            dropout=config.lora_dropout,
            init=init,
        )
        if layer.active_adapter is None:
            layer.active_adapter = adapter_name
    return resolved


def _places(model: nn.Module) -> dict[int, list[str]]:
    """Every name of each module, by its address: one that is used twice must stay one."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    return places


def _keys(target: Target) -> tuple[str, str]:
    stem = f"{_PREFIX}{target.name}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _check_tensors(targets: Sequence[Target], tensors: Mapping[str, Tensor], where: object) -> None:
    """Every tensor has its place, and every place its tensor, of its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target in targets:
        key_a, key_b = _keys(target)
        shapes[key_a], shapes[key_b] = target.shape_a, target.shape_b
    missing = [name for name in shapes if name not in tensors]
    surplus = [name for name in tensors if name not in shapes]
    problems = [Problem(name, "is missing", did_you_mean(name, surplus)) for name in missing]
    problems += [Problem(_cut(name), "has no place in the model") for name in surplus]
    problems += [
        Problem(name, f"is of shape {tuple(tensors[name].shape)}, the model's {shape}")
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        shown = [str(problem) for problem in problems[:_MAX_PROBLEMS_SHOWN]]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise AdapterError(
            "the adapter does not fit the model\n" + "\n".join(f"  - {line}" for line in shown),
            where=where,
            got=f"{len(tensors)} tensors: {len(missing)} missing, {len(surplus)} surplus, "
            f"{len(problems) - len(missing) - len(surplus)} of another shape",
            expected=f"{len(shapes)} tensors",
            do="load it on the base it was trained on",
        )


def _cut(name: str) -> str:
    if len(name) <= _MAX_NAME_CHARACTERS:
        return name
    return f"{name[:_MAX_NAME_CHARACTERS]}… ({len(name)} characters)"


@torch.no_grad()
def _copy_tensors(targets: Sequence[Target], tensors: Mapping[str, Tensor], name: str) -> None:
    for target in targets:
        key_a, key_b = _keys(target)
        assert isinstance(target.layer, LoraLinear)
        a_RD, b_OR = target.layer.factors(name)
        a_RD.copy_(tensors[key_a])
        b_OR.copy_(tensors[key_b])
