"""Registration of the Triton kernels of optimizer steps, and of their state in 8 bits.

These kernels round as the reference on a CPU does, and are used on a device after one comparison
to the bit.
"""

from collections.abc import Callable
from typing import Any

import torch

from ince.ops.adamw import ADAMW_8BIT_STEP_, ADAMW_STEP_
from ince.ops.eight_bit import DEQUANTIZE_8BIT, QUANTIZE_8BIT
from ince.ops.lion import LION_8BIT_STEP_, LION_STEP_
from ince.ops.triton.proven import proven_kernel

__all__ = ["OPERATORS", "register"]

OPERATORS = (
    QUANTIZE_8BIT,
    DEQUANTIZE_8BIT,
    ADAMW_STEP_,
    ADAMW_8BIT_STEP_,
    LION_STEP_,
    LION_8BIT_STEP_,
)


def register() -> None:
    """Register every operator's kernel; called once, where this package is imported."""
    for operator in OPERATORS:
        operator.backend("cuda")(_kernel(operator.name))


def _kernel(name: str) -> Callable[..., Any]:
    return proven_kernel(name, "launch_steps", _compared, proof="optimizer steps")


def _compared(_: Callable[..., Any], device: torch.device) -> str | None:
    from ince.ops.triton.optimizer_proof import difference

    return difference(device)
