"""Kernels that are used on a device after one comparison there, and the reference elsewhere.

Nothing is imported or tried before the first call. What cannot run, or does not pass, leaves its
operator to the reference, and that is said once.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.triton.backend import first_of, leave_to_reference

__all__ = ["proven_kernel"]

# How a device's results differ from the reference's, or None; by device and what was compared.
_differences: dict[tuple[torch.device, str], str | None] = {}


def proven_kernel(
    name: str,
    module: str,
    difference: Callable[[Callable[..., Any], torch.device], str | None],
    *,
    proof: str,
) -> Callable[..., Any]:
    """The function to register for an operator.

    Args:
        name: of the operator, of its reference, and of what launches its kernel.
        module: of this package, which holds that.
        difference: of it on a device and the reference; None where there is none that counts.
        proof: what is compared; operators that share a comparison give it one name.
    """
    slow: Callable[..., Any] = getattr(reference, name)

    def kernel(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))

        def fast() -> Any:
            launch = getattr(importlib.import_module(f"ince.ops.triton.{module}"), name)
            if (device, proof) not in _differences:
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    # Nothing can be compared while a graph is recorded.
                    return slow(*args)
                _differences[device, proof] = difference(launch, device)
            reason = _differences[device, proof]
            if reason is not None:
                leave_to_reference(device, name, reason)
                return slow(*args)
            return launch(*args)

        return first_of(name, device, fast, lambda: slow(*args))

    kernel.__name__ = name
    return kernel
