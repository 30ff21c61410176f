"""What a kernel of training must show on a device before it is used there.

Importing this needs no Triton; the kernel comes as an argument.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ince.ops.reference as reference

__all__ = ["cases", "difference", "results"]

# Of the largest result: a few roundings of the type.
_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def difference(name: str, launch: Callable[..., Any], device: torch.device) -> str | None:
    """How `launch` on `device` differs from the reference on the CPU; None where it does not."""
    for dtype in (torch.bfloat16, torch.float32):
        for args in cases(name, dtype):
            placed = [arg.to(device) if isinstance(arg, Tensor) else arg for arg in args]
            pairs = (results(launch, placed), results(getattr(reference, name), args))
            for one, other in zip(*pairs, strict=True):
                error = float((one.cpu().float() - other.float()).abs().max())
                limit = _TOLERANCE[dtype] * max(1.0, float(other.float().abs().max()))
                if not error <= limit:
                    return f"{name} in {dtype} is off by {error:.1e} where {limit:.1e} is rounding"
    return None


def results(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """What it returns and what it writes into."""
    args = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    returned = function(*args)
    results = returned if isinstance(returned, tuple) else (returned,)
    tensors = [*results, *args]
    return [each for each in tensors if isinstance(each, Tensor) and each.is_floating_point()]


def cases(name: str, dtype: torch.dtype) -> list[list[Any]]:
    """Arguments for an operator of training: odd sizes, and both ways of each option."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if name.startswith("rms_norm"):
        x, dy, weight = drawn(5, 577), drawn(5, 577), drawn(577)
        rstd = torch.rsqrt(x.float().square().mean(-1) + 1e-6)
        if name == "rms_norm":
            return [[x, weight, 1e-6, 0.0, False], [x, weight, 1e-6, 1.0, True]]
        rest = [[dy, x, weight, rstd, offset] for offset in (0.0, 1.0)]
        return [[drawn(5, 577), *each] for each in rest] if "add" in name else rest
    if name.startswith("gated"):
        kinds = ("silu", "gelu_tanh", "gelu")
        tensors = [3 * drawn(3, 701) for _ in range(2 if name == "gated_activation" else 3)]
        return [[*tensors, kind] for kind in kinds]
    if name.startswith("rope"):
        angle = 6 * drawn(2, 7, 12, dtype=torch.float32)
        angles = [angle.cos().to(dtype), angle.sin().to(dtype)]
        q, k = drawn(2, 7, 3, 16), drawn(2, 7, 1, 16)
        if name == "rope_input_grad":
            return [[q.transpose(1, 2), k.transpose(1, 2), *angles]]
        return (
            [[q, k, *angles, True], [q, k, *angles, False]]
            if name == "rope_"
            else [[q, k, *angles]]
        )
    logits = 4 * drawn(4, 1201)
    targets = torch.tensor([0, 1200, -100, 517])
    weights = torch.tensor([1.0, 0.25, 3.0, 0.0])
    if name == "cross_entropy":
        return [[logits, targets, softcap] for softcap in (0.0, 5.0)]
    if name == "cross_entropy_input_grad":
        return [[logits, targets, softcap, weights] for softcap in (0.0, 5.0)]
    return [[logits, targets, 0.5, 0.0, None], [logits, targets, 2.0, 5.0, weights]]
