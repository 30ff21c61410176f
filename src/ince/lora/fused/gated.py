"""A gated feed-forward block as one function: ``down(act(gate(x)) * up(x))``.

Kept for the backward pass are x, the outputs of gate and up, and the (N, r) products of the
adapters; not their product h, which is computed again, and never a dequantized weight. The
backward pass overwrites what was kept with gradients, so it can be taken once.

The bracketing keeps the rank on one side of every product; see `ince.lora.fused.low_rank`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ince.lora.fused.low_rank import (
    Kept,
    backward,
    factor_gradients,
    forward,
    input_gradient,
    projected,
)
from ince.lora.fused.part import Part, parts_of
from ince.ops import gated_activation, gated_activation_backward_

__all__ = ["gated_mlp"]


def gated_mlp(
    x: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module, activation: str
) -> Tensor | None:
    """The block's output, (..., D) to (..., D); None where its layers must compute apart.

    Args:
        x: of any float type.
        gate, up, down: linear layers, with or without an adapter, over frozen weights.
        activation: of `ince.ops.gated_activation`.
    """
    if x.dtype == torch.float64:
        return None  # no kernel for it: the definition is for comparisons
    parts = parts_of((gate, up, down), x)
    if parts is None:
        return None
    factors = [tensor for part in parts for tensor in (part.a_RD, part.b_OR)]
    return cast(Tensor, _Gated.apply(x, parts, activation, *factors))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parts: Sequence[Part],
        activation: str,
        *factors: Tensor | None,  # noqa: ARG004  they are in the parts, and here for autograd
    ) -> Tensor:
        wants = ctx.needs_input_grad[3:]
        (e_NF, g_NF), inner = forward(
            x.reshape(-1, x.shape[-1]), parts[:2], keeps_input=wants[0] or wants[2]
        )
        h_NF = gated_activation(e_NF, g_NF, activation)
        (y_ND,), outer = forward(h_NF, parts[2:], keeps_input=False)
        ctx.parts, ctx.activation = parts, activation
        ctx.num_inner = len(inner.tensors())
        ctx.save_for_backward(e_NF, g_NF, *inner.tensors(), *outer.tensors())
        return y_ND.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        e_NF, g_NF, *rest = ctx.saved_tensors
        inner = Kept.from_tensors(rest[: ctx.num_inner])
        outer = Kept.from_tensors(rest[ctx.num_inner :])
        gate_up, down = ctx.parts[:2], ctx.parts[2:]
        wants = ctx.needs_input_grad[3:]
        dy_ND = grads[0].reshape(-1, grads[0].shape[-1])
        v_NR = projected([dy_ND], down, outer)
        dh_NF = input_gradient([dy_ND], down, outer, v_NR)
        # In place: gate and up become their gradients, and dh becomes h.
        gated_activation_backward_(dh_NF, e_NF, g_NF, ctx.activation)
        outer = replace(outer, x_ND=dh_NF)
        found_down = factor_gradients([dy_ND], down, outer, v_NR, wants[4:])
        dx_ND, found = backward(
            [e_NF, g_NF], gate_up, inner, wants_x=ctx.needs_input_grad[0], wants=wants[:4]
        )
        dx = None if dx_ND is None else dx_ND.view(*grads[0].shape[:-1], -1)
        return (dx, None, None, *found, *found_down)
