"""The CPU backend: C++ compiled when ince is installed, the instruction set chosen when it runs.

It equals the reference to the bit where weights are packed and expanded, and up to the order of
sums where they are multiplied. Where the library is missing (no compiler when ince was
installed), the reference does the work: that is said once in the log, and by `status`.
"""

from ince.ops.cpu import (
    attention,
    cross_entropy,
    dense,
    eight_bit,
    four_bit,
    gated,
    linear,
    lora_segments,
    norm,
    paged_attention,
    rotary,
    steps,
)
from ince.ops.cpu.library import instruction_sets, status, use_instruction_set

__all__ = [
    "attention",
    "cross_entropy",
    "dense",
    "eight_bit",
    "four_bit",
    "gated",
    "instruction_sets",
    "linear",
    "lora_segments",
    "norm",
    "paged_attention",
    "rotary",
    "status",
    "steps",
    "use_instruction_set",
]
