"""Rotary position embedding in plain PyTorch: transformers' formula, in float32."""

import torch
from torch import Tensor

from ince.ops.rotary import ROPE, ROPE_, ROPE_INPUT_GRAD

__all__ = ["rope", "rope_", "rope_input_grad"]


@ROPE.backend("default")
def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rope`."""
    first, second = (_turned(x, cos, sin, inverse=False).transpose(1, 2) for x in (q, k))
    return first.contiguous(), second.contiguous()


@ROPE_.backend("default")
def rope_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> None:
    """See `ince.ops.rope_`."""
    for x in (q, k):
        x.copy_(_turned(x, cos, sin, inverse=inverse))


@ROPE_INPUT_GRAD.backend("default")
def rope_input_grad(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rope_input_grad`."""
    first, second = (_turned(x.transpose(1, 2), cos, sin, inverse=True) for x in (dq, dk))
    return first.contiguous(), second.contiguous()


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
    """(B, L, H, D) in the type of `x`."""
    num_rotated = cos.shape[-1]
    wide, rest = x[..., :num_rotated].float(), x[..., num_rotated:]
    cos, sin = cos.float().unsqueeze(2), sin.float().unsqueeze(2)
    if inverse:
        turned = wide * cos - _rotate_half(wide * sin)
    else:
        turned = wide * cos + _rotate_half(wide) * sin
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def _rotate_half(x: Tensor) -> Tensor:
    lower, upper = x.chunk(2, dim=-1)
    return torch.cat((-upper, lower), dim=-1)
