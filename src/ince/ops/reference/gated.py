"""Gated activations in plain PyTorch, in float32.

Both kinds of GELU are written so that large negative arguments keep their digits:
``1 + tanh(z)`` is ``2 σ(2 z)``, and ``1 + erf(z)`` is ``erfc(-z)``.
"""

import math

import torch
from torch import Tensor

from ince.ops.gated import GATED_ACTIVATION, GATED_ACTIVATION_BACKWARD_

__all__ = ["gated_activation", "gated_activation_backward_"]

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
    value, slope = _activated(gate.float(), kind)
    wide_dh, wide_up = dh.float(), up.float()
    # All three before any is written: `float` does not copy what is float32 already.
    d_gate, d_up, h = wide_dh * wide_up * slope, wide_dh * value, value * wide_up
    gate.copy_(d_gate)
    up.copy_(d_up)
    dh.copy_(h)


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
