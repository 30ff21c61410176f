"""Every numeric kernel of ince, each declared once as a `torch.library` operator.

A declaration holds the schema, the checks and the shapes of the results; backends register
beside it and share all three. `ops.reference` is plain PyTorch on any device, and the
definition of correct: every other backend equals it to the bit. The functions here call the
operators of the same name under ``torch.ops.ince``.
"""

from ince.ops import reference
from ince.ops.absmax import dequantize_absmax, quantize_absmax
from ince.ops.codes import BLOCKSIZES, NF4_CODE, dynamic_map
from ince.ops.nf4 import dequantize_nf4, quantize_nf4

__all__ = [
    "BLOCKSIZES",
    "NF4_CODE",
    "dequantize_absmax",
    "dequantize_nf4",
    "dynamic_map",
    "quantize_absmax",
    "quantize_nf4",
    "reference",
]
