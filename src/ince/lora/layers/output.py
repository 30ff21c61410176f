"""What an adapted layer computes: its base, and what the active adapters change.

`summed` is the definition, for every kind of layer and any number of adapters. `one` is the
same for one adapter, and quick where most of the work is: over a frozen linear layer.

    y = W x + bias + Σ s · B A x                          and with DoRA's c = m / ‖W + s·BA‖
    y = W x + bias + Σ s · B A x + (c − 1)(W x + s · B A x)

Each adapter is seen apart from the others: a second one turns the base and not the first.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.lora.factors import Factors
from ince.lora.layers.carrier import Carrier
from ince.lora.layers.linear import LinearGeometry
from ince.lora.product import FusedLora, lora_frozen

__all__ = ["one", "summed"]


def one(layer: Carrier, x: Tensor, adapter_name: str) -> Tensor:
    """`summed` for one adapter."""
    geometry = layer.geometry
    if (
        not isinstance(geometry, LinearGeometry)
        or not _is_frozen_in(geometry, x)
        # The compiler sees through the definition, and fuses it better.
        or torch.compiler.is_compiling()
    ):
        return summed(layer, x, (adapter_name,))
    factors = layer.factors(adapter_name)
    p = layer.dropout_of(adapter_name)
    base, a_RD, b_OR, s = geometry.base, factors.a_RD, factors.b_OR, factors.s
    is_plain = factors.is_plain
    if torch.is_grad_enabled() and (x.requires_grad or a_RD.requires_grad or b_OR.requires_grad):
        if p > 0 and factors.magnitude is not None:
            return summed(layer, x, (adapter_name,))
        dtype = x.dtype
        weight: Callable[[], Tensor] = lambda: geometry.frozen_weight(dtype)  # noqa: E731
        y = cast(Tensor, FusedLora.apply(x, a_RD, b_OR, base, weight, s, p))
    elif p > 0:
        return summed(layer, x, (adapter_name,))
    else:
        y = lora_frozen(x, a_RD, b_OR, base, s)
    return y if is_plain else _finished(y, factors, geometry.bias)


def summed(layer: Carrier, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
    """The definition, in operations that autograd and compilers know."""
    geometry, base_layer = layer.geometry, layer.base_layer
    y = base = cast(Tensor, base_layer(x))
    for name in adapter_names:
        factors, p = layer.factors(name), layer.dropout_of(name)
        seen = F.dropout(x, p) if p > 0 and x.is_floating_point() else x
        update = geometry.update(seen, factors)
        y = y + update
        if factors.magnitude is None:
            continue
        # DoRA sees the base through the same dropout, and leaves the bias alone.
        turned = (base if seen is x else base_layer(seen)) + update
        if geometry.bias is not None:
            turned = turned - geometry.per_output(geometry.bias)
        y = y + geometry.per_output(factors.magnitude - 1).to(turned.dtype) * turned
    return y.to(base.dtype)


def _finished(y: Tensor, factors: Factors, base_bias: Tensor | None) -> Tensor:
    """Bias and magnitude of an update whose s · B A is in `y` already; outputs are last.

    What the magnitude changes is added, c − 1 times the output: in 16 bits c itself is too
    coarse a factor for the whole of it.
    """
    if factors.bias is not None:
        y = y + (factors.s * factors.bias).to(y.dtype)
    if factors.magnitude is None:
        return y
    turned = y if base_bias is None else y - base_bias.to(y.dtype)
    return torch.addcmul(y, turned, (factors.magnitude - 1).to(y.dtype))


def _is_frozen_in(geometry: LinearGeometry, x: Tensor) -> bool:
    """Whether the base computes in the dtype of x and does not train."""
    if x.dtype != geometry.compute_dtype or torch.is_autocast_enabled(x.device.type):
        return False
    parameters: dict[str, Tensor | None] = geometry.base._parameters
    return not any(p is not None and p.requires_grad for p in parameters.values())
