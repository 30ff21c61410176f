"""`Adapted`: what every module that carries adapters can do.

The model's walks (inject, load, save, switch, merge, delete) know only this, so that a new kind
of adapted module is a new class and no new branch.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn

from ince.lora.layers.state import AdapterState

__all__ = ["PREFIX", "Adapted", "MergedTensor", "adapted_modules", "outer_modules"]

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

    def keyed_tensors(self, module_name: str, adapter_name: str) -> dict[str, Tensor]:
        """`tensors` under the full names of the file."""
        stem = f"{PREFIX}{module_name}."
        return {stem + suffix: t for suffix, t in self.tensors(adapter_name).items()}

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
            base = self.__dict__.get("_modules", {}).get("base_layer")
            if base is None or name == "base_layer":
                raise
            return getattr(base, name)


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The adapted modules of a plain model (not of a `PeftModel`), by dotted name."""
    for name, module in outer_modules(model):
        if isinstance(module, Adapted):
            yield name, module


def outer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of `model` by dotted name, the root first, without adapted modules' insides."""
    inside = ""
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        inside = f"{name}." if isinstance(module, Adapted) else ""
        yield name, module
