"""``h = act(gate) * up`` and its gradient, in place on what is no longer needed.

Arithmetic is float32, rounded once; the derivative is written out, since what it overwrites is
what autograd would have kept.
"""

import math

import torch
from torch import Tensor

__all__ = ["gated_activation", "gated_activation_backward_"]


def gated_activation(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate) · up for ``silu``, ``gelu`` and ``gelu_tanh``, in the type of `gate`."""
    value, _ = _value_and_slope(gate.float(), kind)
    return value.mul_(up).to(gate.dtype)


def gated_activation_backward_(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> None:
    """Overwrite `gate` and `up` by their gradients, and `dh`, the gradient of h, by h."""
    value, slope = _value_and_slope(gate.float(), kind)
    gate.copy_(slope.mul_(up).mul_(dh))
    h = value * up
    up.copy_(value.mul_(dh))
    dh.copy_(h)


def _value_and_slope(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if kind == "silu":
        sigmoid = torch.sigmoid(x)
        value = x * sigmoid
        return value, sigmoid + value * (1 - sigmoid)
    if kind == "gelu":
        normal = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return x * normal, normal + x * density
    scale = math.sqrt(2 / math.pi)
    inner = torch.tanh(scale * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + inner)
    slope += 0.5 * x * (1 - inner * inner) * scale * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + inner), slope
