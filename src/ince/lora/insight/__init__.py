"""What an adapter is made of: norms, spectra, and what two adapters share."""

from ince.lora.insight.base_weights import BaseWeights
from ince.lora.insight.comparison import Comparison, LayerPair, compare_adapters
from ince.lora.insight.inspection import AdapterInsight, LayerInsight, inspect_adapter

__all__ = [
    "AdapterInsight",
    "BaseWeights",
    "Comparison",
    "LayerInsight",
    "LayerPair",
    "compare_adapters",
    "inspect_adapter",
]
