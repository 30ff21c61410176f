"""Layers that read one input, computed together: q, k and v of an attention block.

Against three layers that compute by themselves: the input is kept once, its products with A
and the gradient of A are one product each, and the gradient of the input is one buffer that all
add to.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ince.lora.fused.low_rank import Kept, backward, forward
from ince.lora.fused.part import Part, parts_of

__all__ = ["joint_linear"]


def joint_linear(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...] | None:
    """What each layer makes of `x`, (..., D) to (..., O); None where they must compute apart.

    Args:
        x: of any float type, the same for all.
        layers: linear ones, with or without an adapter, over frozen weights.
    """
    parts = parts_of(layers, x)
    if parts is None:
        return None
    factors = [tensor for part in parts for tensor in (part.a_RD, part.b_OR)]
    return cast("tuple[Tensor, ...]", _Joint.apply(x, parts, *factors))


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parts: Sequence[Part],
        *factors: Tensor | None,  # noqa: ARG004  they are in the parts, and here for autograd
    ) -> tuple[Tensor, ...]:
        ctx.parts = parts
        outputs, kept = forward(
            x.reshape(-1, x.shape[-1]), parts, keeps_input=any(ctx.needs_input_grad[2::2])
        )
        ctx.save_for_backward(*kept.tensors())
        return tuple([y_NO.view(*x.shape[:-1], -1) for y_NO in outputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        dx_ND, found = backward(
            rows,
            ctx.parts,
            Kept.from_tensors(ctx.saved_tensors),
            wants_x=ctx.needs_input_grad[0],
            wants=ctx.needs_input_grad[2:],
        )
        dx = None if dx_ND is None else dx_ND.view(*grads[0].shape[:-1], -1)
        return (dx, None, *found)
