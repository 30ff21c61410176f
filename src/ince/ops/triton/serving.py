"""Registration of the Triton kernels of serving for CUDA devices: paged attention and updates by
many adapters.

They take sums, so that their proof is not equality to the bit: each operator is run once on small
tensors of its device and compared with the reference within rounding.
"""

from collections.abc import Callable
from typing import Any

import torch

from ince.ops.lora_segments import ADD_LORA_SEGMENTS_
from ince.ops.operator import Operator
from ince.ops.paged_attention import PAGED_ATTENTION
from ince.ops.triton.proven import proven_kernel
from ince.ops.write_kv import WRITE_KV_

__all__ = ["OPERATORS", "register"]

OPERATORS: dict[str, tuple[Operator, ...]] = {
    "paged_attention": (PAGED_ATTENTION, WRITE_KV_),
    "lora_segments": (ADD_LORA_SEGMENTS_,),
}
"""Modules of this package, and the operators that each has kernels for."""


def register() -> None:
    """Register every operator's kernel; called once, where this package is imported."""
    for module, operators in OPERATORS.items():
        for operator in operators:
            operator.backend("cuda")(_kernel(module, operator.name))


def _kernel(module: str, name: str) -> Callable[..., Any]:
    def compared(launch: Callable[..., Any], device: torch.device) -> str | None:
        from ince.ops.triton.serving_proof import difference

        return difference(name, launch, device)

    return proven_kernel(name, module, compared, proof=name)
