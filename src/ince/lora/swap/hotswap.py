"""Swap the weights of an adapter in place, under the names of PEFT's functions.

An adapter that is prepared lies in a `Room`: a swap is a copy, and a compiled model stays
compiled. One that is not prepared is prepared by its first swap.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ince.errors import ConfigError, Problem
from ince.lora.config import LoraConfig
from ince.lora.placement.inject import lora_layers
from ince.lora.placement.names import check_known
from ince.lora.swap.room import Room, check_layers
from ince.lora.swap.slots import tenant_of
from ince.lora.swap.widen import widen

if TYPE_CHECKING:
    from ince.lora.peft_model import PeftModel

__all__ = [
    "hotswap_adapter",
    "hotswap_adapter_from_state_dict",
    "prepare_model_for_compiled_hotswap",
]


def prepare_model_for_compiled_hotswap(
    model: "PeftModel", *, target_rank: int | None = None, adapter_name: str | None = None
) -> None:
    """Give adapters the room that later ones need, before the model is compiled.

    Args:
        model: with the adapters that will be swapped.
        target_rank: the highest rank to come; without it their own.
        adapter_name: of the adapter; without it, all.

    Raises:
        AdapterError: no such adapter, or one that cannot be swapped.
        ConfigError: `target_rank` is under the rank that an adapter has.
    """
    names = list(model.peft_config) if adapter_name is None else [adapter_name]
    for name in names:
        check_known(name, model.peft_config)
    base = model.get_base_model()
    for name in names:
        check_layers([(n, each) for n, each in lora_layers(base) if name in each.specs], name)
        for layer_name, layer in lora_layers(base):
            spec = layer.specs.get(name)
            if spec is not None and target_rank is not None and target_rank < spec.r:
                raise ConfigError(
                    "the rank to prepare for is too low",
                    where=layer_name,
                    problems=[Problem("target_rank", f"got {target_rank}", f"at least {spec.r}")],
                )
    for name in names:
        if target_rank is not None:
            widen(base, name, target_rank)
        _rooms(model)[name] = Room(base, name)


def hotswap_adapter(
    model: "PeftModel", model_name_or_path: str | Path, adapter_name: str = "default"
) -> None:
    """Overwrite the weights of an adapter by those in a folder.

    Args:
        model: that has the adapter; compiled or not.
        model_name_or_path: a folder in PEFT's format.
        adapter_name: whose weights change.

    Raises:
        AdapterError, ConfigError, CorruptFileError: it does not fit; nothing was changed.
    """
    _swap(model, Path(model_name_or_path), None, adapter_name)


def hotswap_adapter_from_state_dict(
    model: "PeftModel",
    state_dict: Mapping[str, Tensor],
    adapter_name: str,
    config: LoraConfig,
) -> None:
    """Overwrite the weights of an adapter by tensors of PEFT's names; see `hotswap_adapter`."""
    _swap(model, state_dict, config, adapter_name)


def _swap(
    model: "PeftModel",
    adapter: Path | Mapping[str, Tensor],
    config: LoraConfig | None,
    adapter_name: str,
) -> None:
    check_known(adapter_name, model.peft_config)
    base = model.get_base_model()
    tenant, _ = tenant_of(base, adapter, config)
    rooms = _rooms(model)
    room = rooms.get(adapter_name)
    # Another adapter of that name may have come since.
    if room is None or not room.is_of(base):
        room = rooms[adapter_name] = Room(base, adapter_name)
    room.move_in(room.packed(tenant))


def _rooms(model: "PeftModel") -> dict[str, Room]:
    """The rooms of a model's adapters, kept with the model and gone with it."""
    found: dict[str, Room] | None = model.__dict__.get("_rooms")
    if found is None:
        found = {}
        model.__dict__["_rooms"] = found
    return found
