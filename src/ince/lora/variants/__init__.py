"""Variants of LoRA, as objects in a table: what is trained in a layer, and how it is used.

A variant says which tensors an adapter has in a layer and reduces them to `Factors`; products,
merges and mixed batches are the same for all.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ince.lora.variants.adalora import AdaLora
from ince.lora.variants.dora import Dora
from ince.lora.variants.plain import Plain
from ince.lora.variants.variant import Variant
from ince.lora.variants.vera import Vera

__all__ = ["ADALORA", "VARIANTS", "VERA", "Variant"]

ADALORA, VERA = AdaLora(), Vera()

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {"lora": Plain(), "dora": Dora(), "adalora": ADALORA, "vera": VERA}
)
