"""`AdapterSlots`: room for a number of adapters, made once, and adapters that move in and out.

A server holds more adapters than a model has in its layers. A slot is an adapter like any
other, by its name in `set_adapter` and in mixed batches; which adapter is in it changes by one
copy. Adapters wait in packed form, on any device, in the layout of a slot.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, ConfigError, Problem, did_you_mean
from ince.formats.adapter import read_adapter
from ince.lora.config import LoraConfig
from ince.lora.placement.inject import fitted
from ince.lora.placement.places import LayerPlace
from ince.lora.swap.room import Room, Tenant

if TYPE_CHECKING:
    from ince.lora.peft_model import PeftModel

__all__ = ["AdapterSlots", "PackedAdapter", "tenant_of"]


@dataclass(frozen=True)
class PackedAdapter:
    """An adapter in the layout of a slot, ready to be copied into it.

    Attributes:
        config: of the adapter.
        values: flat float32; its scale is folded into B.
    """

    config: LoraConfig
    values: Tensor

    @property
    def num_bytes(self) -> int:
        """Of the values."""
        return self.values.numel() * self.values.element_size()

    def pin(self) -> "PackedAdapter":
        """A copy in pinned memory, from which a GPU reads quickest."""
        return PackedAdapter(self.config, self.values.pin_memory())


class AdapterSlots:
    """Slots ``<prefix>0``, ``<prefix>1``, … in a model, each empty at first (the base).

    Args:
        model: a `PeftModel`; the slots come beside the adapters that it has.
        config: what fits into a slot: its `r` is the highest rank, its `target_modules` all
            layers that may be adapted, and `use_dora` and `lora_bias` the variant.
        num_slots: how many.
        prefix: of their names.

    Raises:
        AdapterError: a name is in use, or the config's kind of adapter has no slots.
        ConfigError: the config does not fit the model.
    """

    def __init__(
        self, model: "PeftModel", config: LoraConfig, num_slots: int, *, prefix: str = "slot"
    ) -> None:
        if not isinstance(num_slots, int) or num_slots < 1:
            raise ConfigError(
                "no slots asked for",
                problems=[Problem("num_slots", f"got {num_slots!r}", "at least 1")],
            )
        self._model = model
        base = model.get_base_model()
        # A is drawn and B zero in a fresh adapter; an empty slot is all zero.
        plain = config.model_copy(update={"init_lora_weights": True, "inference_mode": True})
        names = [f"{prefix}{number}" for number in range(num_slots)]
        taken = [name for name in names if name in model.peft_config]
        if taken:
            raise AdapterError(
                "there are adapters of the slots' names already",
                got=", ".join(taken),
                do="choose another prefix",
            )
        self._rooms: dict[str, Room] = {}
        try:
            for name in names:
                model.add_adapter(name, plain)
                self._rooms[name] = Room(base, name)
        except BaseException:
            for name in names:
                if name in model.peft_config:
                    model.delete_adapter(name)
            raise
        for room in self._rooms.values():
            room.move_in(room.blank)
        self._held: dict[str, PackedAdapter | None] = dict.fromkeys(self._rooms)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the slots, which are the names of adapters in the model."""
        return tuple(self._rooms)

    @property
    def slot_bytes(self) -> int:
        """What one slot, or one packed adapter, takes."""
        return next(iter(self._rooms.values())).num_bytes

    def holds(self, slot: str) -> PackedAdapter | None:
        """What was last put into a slot; None for an empty one."""
        self._check_slot(slot)
        return self._held[slot]

    def pack(
        self,
        adapter: str | Path | Mapping[str, Tensor],
        config: LoraConfig | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> PackedAdapter:
        """Read an adapter, check it against the base, and lay it out as a slot.

        Args:
            adapter: a folder in PEFT's format, or tensors by PEFT's names.
            config: of tensors; a folder has its own.
            device: where the packed form waits; by default that of the model.

        Raises:
            InputError, AdapterError, ConfigError, CorruptFileError: as `load_adapter`; or it
                does not fit into a slot.
        """
        tenant, config = tenant_of(self._model.get_base_model(), adapter, config)
        room = next(iter(self._rooms.values()))
        where = None if device is None else torch.device(device)
        return PackedAdapter(config, room.packed(tenant, device=where))

    def put(self, adapter: PackedAdapter, slot: str) -> None:
        """Copy a packed adapter into a slot, over what was there.

        Raises:
            AdapterError: no such slot, or it was packed for slots of another size.
        """
        self._check_slot(slot)
        room = self._rooms[slot]
        if adapter.values.shape != room.block.shape:
            raise AdapterError(
                "the adapter was packed for other slots",
                where=slot,
                got=f"{adapter.values.numel()} values",
                expected=f"{room.block.numel()}",
                do="pack it with these slots",
            )
        room.move_in(adapter.values)
        self._held[slot] = adapter

    def clear(self, slot: str) -> None:
        """Make a slot the base again."""
        self._check_slot(slot)
        room = self._rooms[slot]
        room.move_in(room.blank)
        self._held[slot] = None

    def _check_slot(self, slot: str) -> None:
        if slot not in self._rooms:
            raise AdapterError(
                f"there is no slot {slot!r}",
                expected=", ".join(self._rooms),
                do=did_you_mean(slot, self._rooms),
            )
        if slot not in self._model.peft_config:
            raise AdapterError(
                "the slot was deleted from the model",
                got=slot,
                do="make new slots; to empty one, call clear()",
            )


def tenant_of(
    model: nn.Module,
    adapter: str | Path | Mapping[str, Tensor],
    config: LoraConfig | None = None,
) -> tuple[Tenant, LoraConfig]:
    """Read an adapter and check it against the plain `model`, which is left as it is.

    Raises:
        AdapterError: it does not fit, or is more than A and B in layers.
    """
    where: Path | None = None
    if isinstance(adapter, str | Path):
        where = Path(adapter)
        values, tensors = read_adapter(where)
        config = LoraConfig.from_peft_dict(values, where=where)
    elif config is None:
        raise AdapterError("tensors without a config cannot be packed", do="give their LoraConfig")
    else:
        tensors = dict(adapter)
    found, tensors, starts = fitted(model, config, tensors, where)
    others = [place.name for place in found.places if not isinstance(place, LayerPlace)]
    if others:
        raise AdapterError(
            "only an adapter of layers can be swapped",
            where=where,
            got=f"whole modules or rows of {', '.join(others[:5])}",
            do="load it with load_adapter",
        )
    if starts:
        raise AdapterError(
            "an adapter with a start of its own cannot be in a slot",
            where=where,
            got=f"init_lora_weights {config.init_lora_weights!r}",
            do="save it in its plain form, and load that",
        )
    places = [place for place in found.places if isinstance(place, LayerPlace)]
    return Tenant(tensors, {place.name: place.target.spec for place in places}), config
