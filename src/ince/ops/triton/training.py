"""Registration of the Triton kernels of training for CUDA devices: norms, gated activations,
rotary embedding, cross-entropy.

As in `backend`, nothing is imported or tried before the first call, and what cannot run leaves
its operator to the reference. These kernels take sums, so that their proof is not equality to
the bit: each operator is run once on small tensors of its device and compared with the reference
within rounding.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cross_entropy import CROSS_ENTROPY, CROSS_ENTROPY_GRAD_, CROSS_ENTROPY_INPUT_GRAD
from ince.ops.gated import GATED_ACTIVATION, GATED_ACTIVATION_BACKWARD_, GATED_ACTIVATION_GRAD
from ince.ops.norm import RMS_NORM, RMS_NORM_ADD_INPUT_GRAD_, RMS_NORM_INPUT_GRAD
from ince.ops.operator import Operator
from ince.ops.rotary import ROPE, ROPE_, ROPE_INPUT_GRAD
from ince.ops.triton.backend import first_of, leave_to_reference

__all__ = ["OPERATORS", "register"]

OPERATORS: dict[str, tuple[Operator, ...]] = {
    "norm": (RMS_NORM, RMS_NORM_INPUT_GRAD, RMS_NORM_ADD_INPUT_GRAD_),
    "gated": (GATED_ACTIVATION, GATED_ACTIVATION_BACKWARD_, GATED_ACTIVATION_GRAD),
    "rotary": (ROPE, ROPE_, ROPE_INPUT_GRAD),
    "cross_entropy": (CROSS_ENTROPY, CROSS_ENTROPY_GRAD_, CROSS_ENTROPY_INPUT_GRAD),
}
"""Modules of this package, and the operators that each has kernels for."""

# Operators that were compared with the reference, by device.
_compared: set[tuple[torch.device, str]] = set()


def register() -> None:
    """Register every operator's kernel; called once, where this package is imported."""
    for module, operators in OPERATORS.items():
        for operator in operators:
            operator.backend("cuda")(_kernel(module, operator.name))


def _kernel(module: str, name: str) -> Callable[..., Any]:
    slow: Callable[..., Any] = getattr(reference, name)

    def kernel(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))

        def fast() -> Any:
            launch = getattr(importlib.import_module(f"ince.ops.triton.{module}"), name)
            if (device, name) not in _compared:
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    # Nothing can be compared while a graph is recorded.
                    return slow(*args)
                from ince.ops.triton.training_proof import difference

                reason = difference(name, launch, device)
                if reason is not None:
                    leave_to_reference(device, name, reason)
                    return slow(*args)
                _compared.add((device, name))
            return launch(*args)

        return first_of(name, device, fast, lambda: slow(*args))

    kernel.__name__ = name
    return kernel
