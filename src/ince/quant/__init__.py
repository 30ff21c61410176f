"""Four-bit frozen weights: the config, the layer, and turning a model's layers into it.

The number format itself is in `ince.ops`; how packed weights lie in files, in `ince.formats`.
"""

from ince.quant.config import NF4Config
from ince.quant.linear4bit import Linear4bit, expanded
from ince.quant.model import quantizable_names, quantize_model
from ince.quant.weights import num_weights, weight_bytes, weight_of

__all__ = [
    "Linear4bit",
    "NF4Config",
    "expanded",
    "num_weights",
    "quantizable_names",
    "quantize_model",
    "weight_bytes",
    "weight_of",
]
