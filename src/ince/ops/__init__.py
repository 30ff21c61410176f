"""Every numeric kernel of ince, each declared once as a `torch.library` operator.

A declaration holds the schema, the checks and the shapes of the results; backends register
beside it and share all three. `ops.reference` is plain PyTorch on any device, and the
definition of correct: every other backend equals it, to the bit where weights are packed and
expanded, within rounding where sums are taken. The functions here call the operators of the
same name under ``torch.ops.ince``.
"""

from ince.ops import cpu, reference, triton
from ince.ops.absmax import dequantize_absmax, quantize_absmax
from ince.ops.adamw import adamw_8bit_step_, adamw_step_
from ince.ops.attention import attention_tiles, packed_attention, packed_attention_backward
from ince.ops.codes import (
    BLOCKSIZES,
    CODES,
    NF4_CODE,
    QUANT_TYPES,
    STATE_BLOCKSIZE,
    code_of,
    dynamic_map,
    dynamic_thresholds,
)
from ince.ops.cross_entropy import IGNORED, cross_entropy, cross_entropy_grad_
from ince.ops.dense import dense_linear
from ince.ops.eight_bit import dequantize_8bit, quantize_8bit
from ince.ops.four_bit import dequantize_4bit, quantize_4bit
from ince.ops.gated import ACTIVATIONS, gated_activation, gated_activation_backward_
from ince.ops.linear import gemv_4bit, linear_4bit
from ince.ops.lion import lion_8bit_step_, lion_step_
from ince.ops.lora_segments import add_lora_segments_
from ince.ops.native import native_dtype
from ince.ops.norm import rms_norm, rms_norm_add_input_grad_, rms_norm_input_grad
from ince.ops.paged_attention import paged_attention
from ince.ops.rotary import rope, rope_, rope_input_grad
from ince.ops.write_kv import write_kv_

__all__ = [
    "ACTIVATIONS",
    "BLOCKSIZES",
    "CODES",
    "IGNORED",
    "NF4_CODE",
    "QUANT_TYPES",
    "STATE_BLOCKSIZE",
    "adamw_8bit_step_",
    "adamw_step_",
    "add_lora_segments_",
    "attention_tiles",
    "code_of",
    "cpu",
    "cross_entropy",
    "cross_entropy_grad_",
    "dense_linear",
    "dequantize_4bit",
    "dequantize_8bit",
    "dequantize_absmax",
    "dynamic_map",
    "dynamic_thresholds",
    "gated_activation",
    "gated_activation_backward_",
    "gemv_4bit",
    "linear_4bit",
    "lion_8bit_step_",
    "lion_step_",
    "native_dtype",
    "packed_attention",
    "packed_attention_backward",
    "paged_attention",
    "quantize_4bit",
    "quantize_8bit",
    "quantize_absmax",
    "reference",
    "rms_norm",
    "rms_norm_add_input_grad_",
    "rms_norm_input_grad",
    "rope",
    "rope_",
    "rope_input_grad",
    "triton",
    "write_kv_",
]
