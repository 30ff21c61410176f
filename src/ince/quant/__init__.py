"""Four-bit frozen weights: the config, the layer, and turning a model's layers into it.

The number format itself is in `ince.ops`; how packed weights lie in files, in `ince.formats`.
"""

from ince.quant.config import NF4Config
from ince.quant.experts4bit import Experts4bit
from ince.quant.linear4bit import Linear4bit, expanded
from ince.quant.model import quantizable_names, quantizable_stacks, quantize_model
from ince.quant.weights import (
    num_weights,
    packed_modules,
    packed_weight_name,
    weight_bytes,
    weight_of,
)

__all__ = [
    "Experts4bit",
    "Linear4bit",
    "NF4Config",
    "expanded",
    "num_weights",
    "packed_modules",
    "packed_weight_name",
    "quantizable_names",
    "quantizable_stacks",
    "quantize_model",
    "weight_bytes",
    "weight_of",
]
