"""Forwards that take the place of a module's own, one kind of module each.

A `Fusion` looks at a module and says how it would compute it, or None. Whether that is right is
not its to say: `ince.models.fused.probe` compares it with the module itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.lora.fused import gated_mlp, joint_linear
from ince.lora.layers.adapted import base_of, own_parameters
from ince.ops import rms_norm

__all__ = ["Forwards", "attention_projections", "gated_block", "norms"]

Forwards = dict[nn.Module, Callable[..., Any]]
"""A forward for each module that gets one."""

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
}


def norms(module: nn.Module) -> list[Forwards]:
    """Candidates for an RMS norm: as Llama rounds, and as Gemma does."""
    parameters = own_parameters(module)
    weight = parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    is_norm = type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)
    if not is_norm or weight is None or weight.ndim != 1 or len(parameters) != 1:
        return []
    epsilon = cast(float, eps)

    def norm(offset: float, in_float32: bool) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            held = cast(Tensor, module.weight)
            y, _ = rms_norm(x, held, epsilon, offset, weight_in_float32=in_float32)
            return y

        return forward

    return [{module: norm(0.0, False)}, {module: norm(1.0, True)}, {module: norm(0.0, True)}]


def gated_block(module: nn.Module) -> list[Forwards]:
    """A block of ``gate_proj``, ``up_proj``, ``down_proj`` and an activation that we know."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(_is_linear(layer) for layer in layers):
        return []
    activation = _activation_of(getattr(module, "act_fn", None))
    if activation is None:
        return []
    gate, up, down = cast(list[nn.Module], layers)
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        # Without gradients nothing is kept, and the module's own way is as quick.
        if torch.is_grad_enabled():
            y = gated_mlp(x, gate, up, down, activation)
            if y is not None:
                return y
        return cast(Tensor, own(x))

    return [{module: forward}]


def attention_projections(module: nn.Module) -> list[Forwards]:
    """``q_proj``, ``k_proj`` and ``v_proj``, which an attention block calls with one input.

    The block itself stays as it is: when it asks for q, all three are computed, and k and v wait
    until they are asked for with the same input.
    """
    layers = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    if not all(_is_linear(layer) for layer in layers):
        return []
    q, k, v = cast(list[nn.Module], layers)
    own = {layer: layer.forward for layer in (q, k, v)}
    waiting: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def first(x: Tensor) -> Tensor:
        waiting.clear()
        found = joint_linear(x, (q, k, v)) if torch.is_grad_enabled() else None
        if found is None:
            return cast(Tensor, own[q](x))
        waiting[k], waiting[v] = (x, found[1]), (x, found[2])
        return found[0]

    def later(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            asked, y = waiting.pop(layer, (None, None))
            return y if asked is x and y is not None else cast(Tensor, own[layer](x))

        return forward

    return [{q: first, k: later(k), v: later(v)}]


def _is_linear(layer: object) -> bool:
    if not isinstance(layer, nn.Module):
        return False
    base: Any = base_of(layer)
    return hasattr(base, "in_features") and hasattr(base, "out_features")


def _activation_of(function: object) -> str | None:
    """Which of ours computes what `function` does, found by computing it."""
    if not callable(function):
        return None
    x = torch.linspace(-6, 6, 97)
    try:
        with torch.no_grad():
            y: object = function(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    for name, ours in _ACTIVATIONS.items():
        if isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, ours(x), atol=1e-6):
            return name
    return None
