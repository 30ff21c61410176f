"""Registration of the Triton kernels of optimizer steps, and of their state in 8 bits.

As in `backend`, nothing is imported or tried before the first call, and what cannot run leaves
its operator to the reference. These kernels round as the reference on a CPU does, and are used
on a device after one comparison to the bit.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch

import ince.ops.reference as reference
from ince.ops.adamw import ADAMW_8BIT_STEP_, ADAMW_STEP_
from ince.ops.eight_bit import DEQUANTIZE_8BIT, QUANTIZE_8BIT
from ince.ops.lion import LION_8BIT_STEP_, LION_STEP_
from ince.ops.triton.backend import first_of, leave_to_reference

__all__ = ["OPERATORS", "register"]

OPERATORS = (
    QUANTIZE_8BIT,
    DEQUANTIZE_8BIT,
    ADAMW_STEP_,
    ADAMW_8BIT_STEP_,
    LION_STEP_,
    LION_8BIT_STEP_,
)

# Why a device leaves these operators to the reference, or None; for those that were compared.
_compared: dict[torch.device, str | None] = {}


def register() -> None:
    """Register every operator's kernel; called once, where this package is imported."""
    for operator in OPERATORS:
        operator.backend("cuda")(_kernel(operator.name))


def _kernel(name: str) -> Callable[..., Any]:
    slow: Callable[..., Any] = getattr(reference, name)

    def kernel(*args: Any) -> Any:
        device: torch.device = args[0].device

        def fast() -> Any:
            if device not in _compared:
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    # Nothing can be compared while a graph is recorded.
                    return slow(*args)
                from ince.ops.triton.optimizer_proof import difference

                _compared[device] = difference(device)
            reason = _compared[device]
            if reason is not None:
                leave_to_reference(device, name, reason)
                return slow(*args)
            launch = importlib.import_module("ince.ops.triton.launch_steps")
            return getattr(launch, name)(*args)

        return first_of(name, device, fast, lambda: slow(*args))

    kernel.__name__ = name
    return kernel
