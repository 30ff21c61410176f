"""Adapters that change places: preallocated slots, and swaps that are one copy."""

from ince.lora.swap.hotswap import (
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
)
from ince.lora.swap.slots import AdapterSlots, PackedAdapter

__all__ = [
    "AdapterSlots",
    "PackedAdapter",
    "hotswap_adapter",
    "hotswap_adapter_from_state_dict",
    "prepare_model_for_compiled_hotswap",
]
