"""`Adapted`: what every module that carries adapters can do.

The model's walks (inject, load, save, switch, merge, delete) know only this, so that a new kind
of adapted module is a new class and no new branch.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ince.lora.layers.state import AdapterState
from ince.quant import Experts4bit

__all__ = [
    "PREFIX",
    "Adapted",
    "MergedTensor",
    "adapted_modules",
    "base_of",
    "outer_modules",
    "own_parameters",
    "own_tensors",
    "plain_model",
]

PREFIX = "base_model.model."
"""How the names of a base's modules begin in an adapter's file."""


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the plain model that is computed when asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[[], Tensor]


class Adapted(nn.Module):
    """A module of the base, and beside it what adapters change about it."""

    base_layer: nn.Module
    """The module as it was, never changed. (Behind a property where PEFT names it otherwise.)"""
    state: AdapterState

    @abstractmethod
    def adapter_names(self) -> tuple[str, ...]:
        """The adapters in this module, in the order in which they came."""

    def has_adapter(self, adapter_name: str) -> bool:
        """Whether one of this name is among `adapter_names`."""
        return adapter_name in self.adapter_names()

    @abstractmethod
    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """What an adapter's file holds of this module, by the end of its name; not copied."""

    @abstractmethod
    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out; nothing happens when it is not in this module."""

    @abstractmethod
    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """The plain module's tensors with the active adapters in them."""

    @abstractmethod
    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """A new plain module with the active adapters in its weights; nothing is shared."""

    def chain(self) -> Iterator["Adapted"]:
        """This one, and the adapted modules that it holds in the same place, the outer first."""
        yield self
        if isinstance(self.base_layer, Adapted):
            yield from self.base_layer.chain()

    def get_base_layer(self) -> nn.Module:
        """The base's own module, under all that adapts it."""
        base = self.base_layer
        return base.get_base_layer() if isinstance(base, Adapted) else base

    def weight_key(self) -> tuple[int, ...]:
        """Equal for modules whose merged ``weight`` is one and the same.

        It is where the weight is one, and the parameters that change it are.
        """
        weight = own_parameters(self.get_base_layer()).get("weight")
        if weight is None:
            return (id(self),)
        changes: set[int] = set()
        for key, table in vars(self)["_modules"].items():
            for name in self.active_here() if key != "base_layer" else ():
                if isinstance(table, nn.ModuleDict) and name in table:
                    changes.update(id(parameter) for parameter in table[name].parameters())
                elif isinstance(table, nn.ParameterDict) and name in table:
                    changes.add(id(table[name]))
        return (id(weight), *sorted(changes))

    def check_active(self, adapter_names: Sequence[str]) -> None:
        """Whether these may be active together here; all may, where nothing else is said.

        Raises:
            AdapterError: they may not.
        """

    def keyed_tensors(self, module_name: str, adapter_name: str) -> dict[str, Tensor]:
        """`tensors` under the full names of the file, and what all layers share."""
        stem = f"{PREFIX}{module_name}."
        keyed = {stem + suffix: t for suffix, t in self.tensors(adapter_name).items()}
        shared = self.state.shared.get(adapter_name)
        return keyed if shared is None or not keyed else keyed | shared.tensors()

    def active_here(self) -> list[str]:
        """The active adapters that are in this module."""
        if self.state.disabled:
            return []
        mine = self.adapter_names()
        return [name for name in self.state.active if name in mine]

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers for sizes and flags: what is not ours is the base's.
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = None if name == "base_layer" else self._stand_in()
            if base is None:
                raise
            return getattr(base, name)

    def _stand_in(self) -> nn.Module | None:
        """Who answers for what is not ours; None before there is one."""
        return self.__dict__.get("_modules", {}).get("base_layer")


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters, not those of modules in it, in the order of declaration."""
    table: dict[str, nn.Parameter | None] = vars(module)["_parameters"]
    return {name: parameter for name, parameter in table.items() if parameter is not None}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The same, and packed stacks of experts, which answer for their shape as parameters do."""
    stacks = {
        name: cast(Tensor, each)
        for name, each in module.named_children()
        if isinstance(each, Experts4bit)
    }
    return {**own_parameters(module), **stacks}


def plain_model(model: nn.Module) -> nn.Module:
    """What a `PeftModel` or a `LoraModel` holds; any other model is plain itself."""
    # Asked by its method, since their classes stand on this one.
    get_base_model = getattr(model, "get_base_model", None)
    return cast(nn.Module, get_base_model()) if callable(get_base_model) else model


def base_of(module: nn.Module) -> nn.Module:
    """The base's own module, whether it is adapted or not."""
    return module.get_base_layer() if isinstance(module, Adapted) else module


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The adapted modules of a plain model (not of a `PeftModel`), by dotted name."""
    for name, module in outer_modules(model):
        if isinstance(module, Adapted):
            yield name, module


def outer_modules(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Every module of `model` by dotted name, the root first, without adapted modules' insides.

    Those are not even walked: what is in them grows with the number of adapters.

    Args:
        model: a plain model.
        every_name: give a module that is used in several places under each of its names.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen and not every_name:
            continue
        seen.add(id(module))
        yield name, module
        inside: dict[str, nn.Module | None] = module.__dict__["_modules"]
        if inside and not isinstance(module, Adapted):
            stem = f"{name}." if name else ""
            for key, child in reversed(inside.items()):
                if child is not None:
                    waiting.append((stem + key, child))
