"""`SavedModule`: an adapter's own copy of a whole module (PEFT's ``modules_to_save``).

For modules that low-rank updates are not enough for, such as a new classification head. Each
adapter has its copy and the base keeps its module: switching, disabling and deleting are as
exact as for any other part of an adapter. A copy of a 4-bit layer is one of floats.

    live    <module>.original_module, <module>.modules_to_save.<adapter>.weight
    file    <module>.weight
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.layers.adapted import MergedTensor
from ince.lora.layers.by_rows import by_rows
from ince.lora.layers.plain import plain_copy, plain_tensors
from ince.lora.layers.replaced import run_with
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import Wrapper
from ince.quant import packed_modules, packed_weight_name

__all__ = ["SavedModule"]


class SavedModule(Wrapper):
    """Runs the active adapter's copy in place of the module.

    Copies of 16-bit modules are float32, as all that is trained, and are rounded when they run.
    """

    level = 3

    modules_to_save: nn.ModuleDict

    def __init__(self, inner: nn.Module, state: AdapterState | None = None) -> None:
        super().__init__(inner, state)
        self.modules_to_save = nn.ModuleDict()

    @property
    def base_layer(self) -> nn.Module:
        """Under PEFT's name."""
        return self.original_module

    def put_inner(self, inner: nn.Module) -> None:
        """Wrap another module instead."""
        self.original_module = inner

    # ------------------------------------------------------------------------------ adapters

    def add_adapter(self, adapter_name: str, tied_to: "SavedModule | None" = None) -> None:
        """Copy the base's module for an adapter.

        Args:
            adapter_name: of the adapter.
            tied_to: a module whose copy has the weight that this one shall share.
        """
        copied = plain_copy(self.get_base_layer(), None)
        if tied_to is not None:
            copied._parameters["weight"] = tied_to.copy_of(adapter_name)._parameters["weight"]
        copied.requires_grad_(True)
        self.modules_to_save[adapter_name] = copied.train(self.training)

    def copy_of(self, adapter_name: str) -> nn.Module:
        """An adapter's copy."""
        return self.modules_to_save[adapter_name]

    def own_names(self) -> tuple[str, ...]:
        """The adapters with a copy."""
        return tuple(self.modules_to_save)

    def own_tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """Parameters and stored buffers of the copy, by their names in it."""
        if adapter_name not in self.modules_to_save:
            return {}
        return self.copy_of(adapter_name).state_dict(keep_vars=True)

    def delete_own(self, adapter_name: str) -> None:
        """Drop a copy."""
        if adapter_name in self.modules_to_save:
            del self.modules_to_save[adapter_name]

    def check_active(self, adapter_names: Sequence[str]) -> None:
        """There can be one copy in a place.

        Raises:
            AdapterError: several of them have one here.
        """
        super().check_active(tuple(adapter_names))
        mine = [name for name in adapter_names if name in self.modules_to_save]
        if len(mine) > 1:
            raise AdapterError(
                "adapters with their own copies of a module cannot be active together",
                where=type(self.get_base_layer()).__name__,
                got=", ".join(mine),
                do="activate one of them, or train them without modules_to_save",
            )

    def _active_copy(self) -> str | None:
        active = self.own_active()
        if len(active) > 1:
            self.check_active(active)
        return active[0] if active else None

    # ------------------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's output, or the module's where the active adapters have none."""
        routing = None if self.state.disabled else self.state.routing
        if routing is None:
            return self._run(self._active_copy(), *args, **kwargs)
        if not set(routing.adapters) & set(self.own_names()):
            return self.original_module(*args, **kwargs)
        rest = None
        if self.inner is not None and set(routing.adapters) & set(self.inner.adapter_names()):
            rest = self.original_module(*args, **kwargs)  # its own adapters are among the rows
        where = type(self.get_base_layer()).__name__
        return by_rows(
            routing, self.own_names(), self._run_alone, args, kwargs, where=where, rest=rest
        )

    def _run_alone(self, adapter_name: str | None, *args: Any, **kwargs: Any) -> Any:
        if adapter_name is None:
            return self.get_base_layer()(*args, **kwargs)
        return self._run(adapter_name, *args, **kwargs)

    def _run(self, adapter_name: str | None, *args: Any, **kwargs: Any) -> Any:
        if adapter_name is None:
            return self.original_module(*args, **kwargs)
        copied = self.copy_of(adapter_name)
        rounded = self._rounded(copied)
        return run_with(copied, rounded, *args, **kwargs) if rounded else copied(*args, **kwargs)

    def _rounded(self, copied: nn.Module) -> dict[str, Tensor]:
        """The parameters that are wider than the base's, in the dtype that it computes in."""
        base = self.get_base_layer()
        dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
        for name, module in packed_modules(base).items():
            dtypes[packed_weight_name(name, module)] = module.compute_dtype
        return {
            name: parameter.to(dtypes[name])
            for name, parameter in copied.named_parameters()
            if dtypes.get(name, parameter.dtype) != parameter.dtype
        }

    def _stand_in(self) -> nn.Module | None:
        modules = self.__dict__.get("_modules", {})
        if "modules_to_save" in modules and (active := self.own_active()):
            return self.copy_of(active[0])
        return modules.get("original_module")

    # ------------------------------------------------------------------------------- merging

    def weight_key(self) -> tuple[int, ...]:
        """That of the copy's weight where one is active: tied copies have one."""
        active = self._active_copy()
        if active is not None:
            weight = self.copy_of(active)._parameters.get("weight")
            return (id(self),) if weight is None else (id(weight),)
        return self.inner.weight_key() if self.inner is not None else super().weight_key()

    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """The copy without its adapter."""
        return plain_copy(self._merged_from(), dtype)

    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """The copy's tensors."""
        return plain_tensors(prefix, self._merged_from(), dtype)

    def _merged_from(self) -> nn.Module:
        active = self._active_copy()
        return self.original_module if active is None else self.copy_of(active)
