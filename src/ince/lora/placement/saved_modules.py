"""Where ``modules_to_save`` puts copies of whole modules.

As in PEFT a name means every module whose dotted name ends with it, letters and not parts:
"classifier" means a "pre_classifier" too. Classifiers of a task have their heads in it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from ince.errors import AdapterError, ConfigError, Problem, did_you_mean
from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import PREFIX, Adapted, base_of, outer_modules
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.plain import plain_tensors
from ince.lora.layers.saved_module import SavedModule
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import part_of
from ince.lora.placement.tied import input_embedding_name, keeps_tied, tied_names

__all__ = ["SavedPlace", "find_saved", "with_kept_ties", "with_task_heads"]

_Config = TypeVar("_Config", bound=PeftConfig)

_TASK_HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# The names under which PEFT looks for embeddings that are tied.
_EMBEDDINGS = ("embed_tokens", "lm_head")
_HAVE_NO_FORWARD = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass
class SavedPlace:
    """A module that is copied for the adapter."""

    name: str
    module: nn.Module
    tied_to: "SavedPlace | None" = None
    """Whose copy has the weight that this one's shares."""
    _made: SavedModule | None = field(default=None, repr=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All that a plain copy of the module stores."""
        tensors = plain_tensors(f"{PREFIX}{self.name}.", base_of(self.module), torch.float32)
        return {tensor.name: tensor.shape for tensor in tensors}

    def wrap(self, module: nn.Module, state: AdapterState) -> Adapted:
        """A `SavedModule`, outermost."""
        return SavedModule.around(module, state)

    def add(
        self,
        adapted: Adapted,
        adapter_name: str,
        given: GivenTensors | None = None,  # noqa: ARG002
    ) -> Collection[str]:
        """The copy."""
        self._made = part_of(adapted, SavedModule)
        tied_to = None if self.tied_to is None else self.tied_to._made
        self._made.add_adapter(adapter_name, tied_to)
        return ()

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """It starts as the base."""


def with_task_heads(config: _Config) -> _Config:
    """`config` with the heads of its task in `modules_to_save`."""
    heads = _TASK_HEADS.get(config.task_type or "", ())
    names = tuple(dict.fromkeys((*(config.modules_to_save or ()), *heads)))
    return config.model_copy(update={"modules_to_save": names}) if heads else config


def with_kept_ties(model: nn.Module, config: _Config, *, fresh: bool) -> _Config:
    """`config` with whole modules that are tied named as PEFT names them, so that it ties them."""
    if not fresh or not config.modules_to_save or not keeps_tied(config, fresh=fresh):
        return config
    tied = tied_names(model)
    saved = [name for name in _meant(model, config.modules_to_save) if name in tied]
    if not saved:
        return config
    names = list(config.modules_to_save or ())
    groups = dict.fromkeys(tied[name] for name in saved)
    if not hasattr(config, "ensure_weight_tying"):
        # A method for which PEFT knows no tie: all that is trained is named.
        every = dict.fromkeys((*names, *(name for group in groups for name in group)))
        return config.model_copy(update={"modules_to_save": tuple(every)})
    for first, *others in groups:
        if first == input_embedding_name(model):
            names = [name for name in names if not any(_ends(other, name) for other in others)]
            if first not in names:
                names.append(first)
    return config.model_copy(update={"modules_to_save": tuple(names), "ensure_weight_tying": True})


def find_saved(
    model: nn.Module, config: PeftConfig, *, fresh: bool, keys: Collection[str] | None
) -> list[SavedPlace]:
    """The modules to copy, in the model's order; those tied to them after them.

    Args:
        model: the base, with or without adapters.
        config: with the task's heads and ties.
        fresh: refuse names that mean nothing.
        keys: of the adapter's file, which says what of tied modules is in it; or None.

    Raises:
        ConfigError: a name means nothing, or a module that cannot be copied.
        AdapterError: a module has other adapters inside.
    """
    names = config.modules_to_save
    if not names:
        return []
    heads = _TASK_HEADS.get(config.task_type or "", ())
    if fresh:
        _check_names(model, [name for name in names if name not in heads])
    modules = dict(outer_modules(model))
    found = _meant(model, names)
    places = {name: SavedPlace(name, modules[name]) for name in found}
    if keeps_tied(config, fresh=fresh):
        tied = tied_names(model)
        for name in found:
            owner, *_ = mine = [
                each for each in tied.get(name, (name,)) if _has_keys(each, keys) or each == name
            ]
            first = places.setdefault(owner, SavedPlace(owner, modules[owner]))
            for other in mine[1:]:
                place = places.setdefault(other, SavedPlace(other, modules[other]))
                place.tied_to = first
    for place in places.values():
        _check_can_be_copied(place)
    return sorted(places.values(), key=lambda place: place.tied_to is not None)


def _ends(name: str, end: str) -> bool:
    return name.endswith(end)


def _meant(model: nn.Module, names: Collection[str]) -> list[str]:
    """The outermost modules whose names end with one of `names`."""
    found: list[str] = []
    for name, _ in outer_modules(model):
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not is_inside and any(_ends(name, end) for end in names):
            found.append(name)
    return found


def _has_keys(name: str, keys: Collection[str] | None) -> bool:
    return keys is None or f"{PREFIX}{name}.weight" in keys


def _check_names(model: nn.Module, names: Collection[str]) -> None:
    known = [name for name, _ in outer_modules(model) if name]
    leaves = sorted({name.rpartition(".")[2] for name in known})
    problems = [
        Problem(
            "modules_to_save",
            f"{name!r} matches no module",
            did_you_mean(name.rpartition(".")[2], leaves),
        )
        for name in names
        if not any(_ends(each, name) for each in known)
    ]
    if problems:
        raise ConfigError(
            "the config names modules that the model does not have",
            where=type(model).__name__,
            problems=problems,
        )


def _check_can_be_copied(place: SavedPlace) -> None:
    base = base_of(place.module)
    kind = type(base).__name__
    if isinstance(base, _HAVE_NO_FORWARD):
        raise ConfigError(
            "modules_to_save names what is no module of its own",
            where=place.name,
            got=kind,
            expected="a module with a forward, such as a head or an embedding",
        )
    if any(isinstance(module, Adapted) for module in base.modules()):
        raise AdapterError(
            "a module to copy has adapted modules inside",
            where=place.name,
            do="delete the other adapter first, or leave this module out of modules_to_save",
        )
    if any(True for _ in _stored_buffers(base)):
        raise ConfigError(
            "modules_to_save names a module that keeps statistics of its own",
            where=place.name,
            got=", ".join(_stored_buffers(base)),
            do="leave it out",
        )


def _stored_buffers(module: nn.Module) -> Iterator[str]:
    """Names of the buffers that a plain copy would store."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for tensor in plain_tensors("", module, torch.float32):
        owner, _, leaf = tensor.name.rpartition(".")
        if tensor.name not in parameters and leaf in vars(module.get_submodule(owner))["_buffers"]:
            yield tensor.name
