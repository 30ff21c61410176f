"""What leaves the house: a standalone model, and the proof that it is the one that was trained."""

from ince.publish.merge import merge_to_folder, model_to_folder
from ince.publish.parity import (
    EXACT_LIMIT,
    ROUNDED_LIMIT,
    Parity,
    assert_parity,
    compare_logits,
    float32_copy,
)
from ince.publish.quantized import PackedKind, QuantizedFolder, describe_quantized

__all__ = [
    "EXACT_LIMIT",
    "ROUNDED_LIMIT",
    "PackedKind",
    "Parity",
    "QuantizedFolder",
    "assert_parity",
    "compare_logits",
    "describe_quantized",
    "float32_copy",
    "merge_to_folder",
    "model_to_folder",
]
