"""Does a module with forwards of ours compute what it computes by itself? Asked with numbers.

Architectures differ in small things that no attribute tells: where a norm rounds, whether a block
has a multiplier. So a few rows go through both ways. In float32 they must agree to rounding; in
16 bits to some units in the last place of the largest value.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ince.errors import InceError
from ince.models.fused.forwards import Forwards

__all__ = ["agrees", "placed"]

_NUM_ROWS = 3

# Of the largest value, in units of its last place. In float32 a start that is taken away from what
# it adds (orthogonal, PiSSA) leaves some hundred of them; another formula is off by far more.
_TOLERANCE_ULPS = {torch.float32: 256.0}
_TOLERANCE_ULPS_ELSE = 16.0


@contextmanager
def placed(forwards: Forwards) -> Iterator[None]:
    """Inside, each module computes with the forward that it was given."""
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def agrees(forwards: Forwards, compute: Callable[[Tensor], Any], width: int, like: Tensor) -> bool:
    """Whether `compute` gives the same with and without them.

    Args:
        forwards: of ours.
        compute: a few rows to a tensor, or to several.
        width: of the rows.
        like: their type and device are those of this tensor.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _NUM_ROWS, width, generator=generator)
    x = x.to(like.device, like.dtype).requires_grad_()
    try:
        with torch.enable_grad():
            own = _tensors(compute(x))
            with placed(forwards):
                ours = _tensors(compute(x))
    except (InceError, RuntimeError, TypeError, ValueError, AttributeError):
        return False
    if len(own) != len(ours):
        return False
    return all(_close(a, b) for a, b in zip(own, ours, strict=True))


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _close(own: Tensor, ours: Tensor) -> bool:
    if own.shape != ours.shape or own.dtype != ours.dtype:
        return False
    largest = float(own.detach().float().abs().max()) if own.numel() else 0.0
    off = float((own.detach().float() - ours.detach().float()).abs().max()) if own.numel() else 0.0
    ulps = _TOLERANCE_ULPS.get(own.dtype, _TOLERANCE_ULPS_ELSE)
    return off <= ulps * torch.finfo(own.dtype).eps * max(largest, 1e-6)
