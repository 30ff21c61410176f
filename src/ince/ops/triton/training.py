"""Registration of the Triton kernels of training for CUDA devices: norms, gated activations,
rotary embedding, cross-entropy.

These kernels take sums, so that their proof is not equality to the bit: each operator is run once
on small tensors of its device and compared with the reference within rounding.
"""

from collections.abc import Callable
from typing import Any

import torch

from ince.ops.cross_entropy import CROSS_ENTROPY, CROSS_ENTROPY_GRAD_, CROSS_ENTROPY_INPUT_GRAD
from ince.ops.gated import GATED_ACTIVATION, GATED_ACTIVATION_BACKWARD_, GATED_ACTIVATION_GRAD
from ince.ops.norm import RMS_NORM, RMS_NORM_ADD_INPUT_GRAD_, RMS_NORM_INPUT_GRAD
from ince.ops.operator import Operator
from ince.ops.rotary import ROPE, ROPE_, ROPE_INPUT_GRAD
from ince.ops.triton.proven import proven_kernel

__all__ = ["OPERATORS", "register"]

OPERATORS: dict[str, tuple[Operator, ...]] = {
    "norm": (RMS_NORM, RMS_NORM_INPUT_GRAD, RMS_NORM_ADD_INPUT_GRAD_),
    "gated": (GATED_ACTIVATION, GATED_ACTIVATION_BACKWARD_, GATED_ACTIVATION_GRAD),
    "rotary": (ROPE, ROPE_, ROPE_INPUT_GRAD),
    "cross_entropy": (CROSS_ENTROPY, CROSS_ENTROPY_GRAD_, CROSS_ENTROPY_INPUT_GRAD),
}
"""Modules of this package, and the operators that each has kernels for."""


def register() -> None:
    """Register every operator's kernel; called once, where this package is imported."""
    for module, operators in OPERATORS.items():
        for operator in operators:
            operator.backend("cuda")(_kernel(module, operator.name))


def _kernel(module: str, name: str) -> Callable[..., Any]:
    def compared(launch: Callable[..., Any], device: torch.device) -> str | None:
        from ince.ops.triton.training_proof import difference

        return difference(name, launch, device)

    return proven_kernel(name, module, compared, proof=name)
