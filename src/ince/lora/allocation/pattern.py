"""`rank_pattern`: which of AdaLoRA's ranks are left, by names of E as PEFT writes them.

    "model.layers.0.self_attn.q_proj.lora_E": [true, false, …]      one for each of init_r

It is always about the ranks that training began with, whatever the tensors still hold.
"""

from collections.abc import Mapping

from ince.lora.config import AdaLoraConfig

__all__ = ["Mask", "masks_by_module", "pattern_of", "within"]

Mask = tuple[bool, ...]

_END = ".lora_E"


def masks_by_module(config: AdaLoraConfig) -> dict[str, Mask]:
    """The masks by dotted module name; empty before ranks were given up.

    Keys with an adapter's name at their end, as PEFT has them while it trains, are read too.
    """
    return {_module_of(key): mask for key, mask in (config.rank_pattern or {}).items()}


def pattern_of(masks: Mapping[str, Mask]) -> dict[str, Mask] | None:
    """Masks by module name as a `rank_pattern`; None for none."""
    return {name + _END: mask for name, mask in masks.items()} or None


def within(mask: Mask, kept: Mask | None) -> Mask:
    """A mask of all ranks as one of those that are `kept` in a layer."""
    if kept is None:
        return mask
    return tuple(left for left, here in zip(mask, kept, strict=True) if here)


def _module_of(key: str) -> str:
    if key.endswith(_END):
        return key.removesuffix(_END)
    stem = key.rpartition(".")[0]
    return stem.removesuffix(_END) if stem.endswith(_END) else key
