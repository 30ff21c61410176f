"""Gated activations in plain PyTorch, in float32.

Both kinds of GELU are written so that large negative arguments keep their digits:
``1 + tanh(z)`` is ``2 σ(2 z)``, and ``1 + erf(z)`` is ``erfc(-z)``.
"""

import math

import torch
from torch import Tensor

from ince.ops.gated import (
    GATED_ACTIVATION,
    GATED_ACTIVATION_BACKWARD_,
    GATED_ACTIVATION_GRAD,
)

__all__ = ["gated_activation", "gated_activation_backward_", "gated_activation_grad"]

_TWICE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


@GATED_ACTIVATION.backend("default")
def gated_activation(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """See `ince.ops.gated_activation`."""
    value, _ = _activated(gate.float(), kind)
    return (value * up.float()).to(gate.dtype).contiguous()


@GATED_ACTIVATION_BACKWARD_.backend("default")
def gated_activation_backward_(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> None:
    """See `ince.ops.gated_activation_backward_`."""
    # All three before any is written.
    h = gated_activation(gate, up, kind)
    d_gate, d_up = gated_activation_grad(dh, gate, up, kind)
    gate.copy_(d_gate)
    up.copy_(d_up)
    dh.copy_(h)


@GATED_ACTIVATION_GRAD.backend("default")
def gated_activation_grad(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The gradients of `ince.ops.gated_activation`, in new memory."""
    value, slope = _activated(gate.float(), kind)
    d_gate, d_up = dh.float() * up.float() * slope, dh.float() * value
    return d_gate.to(gate.dtype).contiguous(), d_up.to(up.dtype).contiguous()


def _activated(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """act(x) and its derivative, of float32."""
    if kind == "gelu":
        share = torch.special.erfc(x * -math.sqrt(0.5)) / 2
        return x * share, share + x * torch.exp(x * x / -2) / math.sqrt(2 * math.pi)
    if kind == "gelu_tanh":
        share = torch.sigmoid(_TWICE * x * (1 + _CUBIC * x * x))
        steepness = _TWICE * (1 + 3 * _CUBIC * x * x)
    else:
        share, steepness = torch.sigmoid(x), 1.0
    return x * share, share * (1 + x * steepness * (1 - share))
