"""Root mean square normalization in plain PyTorch, as the models of transformers have it."""

import torch
from torch import Tensor

from ince.ops.norm import (
    RMS_NORM,
    RMS_NORM_ADD_INPUT_GRAD_,
    RMS_NORM_INPUT_GRAD,
    multiplier,
    rounds_before_weight,
    type_of_result,
)

__all__ = ["rms_norm", "rms_norm_add_input_grad_", "rms_norm_input_grad"]


@RMS_NORM.backend("default")
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float, weight_in_float32: bool
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rms_norm`."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = wide * rstd
    if rounds_before_weight(offset, weight_in_float32):
        y = y.to(x.dtype) * weight
    else:
        y = y * multiplier(weight, offset)
    y = y.to(type_of_result(x, weight, offset, weight_in_float32))
    return y.contiguous(), rstd.squeeze(-1).contiguous()


@RMS_NORM_INPUT_GRAD.backend("default")
def rms_norm_input_grad(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> Tensor:
    """See `ince.ops.rms_norm_input_grad`."""
    return _input_grad(dy, x, weight, rstd, offset).to(x.dtype).contiguous()


@RMS_NORM_ADD_INPUT_GRAD_.backend("default")
def rms_norm_add_input_grad_(
    residual: Tensor, dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float
) -> None:
    """See `ince.ops.rms_norm_add_input_grad_`."""
    residual.copy_(residual.float() + _input_grad(dy, x, weight, rstd, offset))


def _input_grad(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, offset: float) -> Tensor:
    """In float32."""
    scale = rstd.unsqueeze(-1)
    normalized = x.float() * scale
    g = dy.float() * multiplier(weight, offset)
    return scale * (g - normalized * (g * normalized).mean(-1, keepdim=True))
