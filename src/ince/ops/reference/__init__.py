"""The reference backend: plain PyTorch, on any device, the definition of correct."""

from ince.ops.reference.absmax import dequantize_absmax, quantize_absmax
from ince.ops.reference.attention import (
    attention_tiles,
    packed_attention,
    packed_attention_backward,
)
from ince.ops.reference.cross_entropy import (
    cross_entropy,
    cross_entropy_grad_,
    cross_entropy_input_grad,
    refuse_targets,
)
from ince.ops.reference.dense import dense_linear
from ince.ops.reference.eight_bit import dequantize_8bit, quantize_8bit, refuse_not_finite
from ince.ops.reference.four_bit import dequantize_4bit, quantize_4bit, refuse_non_finite
from ince.ops.reference.gated import (
    gated_activation,
    gated_activation_backward_,
    gated_activation_grad,
)
from ince.ops.reference.linear import gemv_4bit, linear_4bit, linear_4bit_input_grad
from ince.ops.reference.lora_segments import add_lora_segments_
from ince.ops.reference.norm import rms_norm, rms_norm_add_input_grad_, rms_norm_input_grad
from ince.ops.reference.paged_attention import paged_attention
from ince.ops.reference.rotary import rope, rope_, rope_input_grad
from ince.ops.reference.steps import (
    adamw_8bit_step_,
    adamw_step_,
    lion_8bit_step_,
    lion_step_,
)
from ince.ops.reference.write_kv import write_kv_

__all__ = [
    "adamw_8bit_step_",
    "adamw_step_",
    "add_lora_segments_",
    "attention_tiles",
    "cross_entropy",
    "cross_entropy_grad_",
    "cross_entropy_input_grad",
    "dense_linear",
    "dequantize_4bit",
    "dequantize_8bit",
    "dequantize_absmax",
    "gated_activation",
    "gated_activation_backward_",
    "gated_activation_grad",
    "gemv_4bit",
    "linear_4bit",
    "linear_4bit_input_grad",
    "lion_8bit_step_",
    "lion_step_",
    "packed_attention",
    "packed_attention_backward",
    "paged_attention",
    "quantize_4bit",
    "quantize_8bit",
    "quantize_absmax",
    "refuse_non_finite",
    "refuse_not_finite",
    "refuse_targets",
    "rms_norm",
    "rms_norm_add_input_grad_",
    "rms_norm_input_grad",
    "rope",
    "rope_",
    "rope_input_grad",
    "write_kv_",
]
