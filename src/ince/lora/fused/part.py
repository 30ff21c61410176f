"""`Part`: one linear layer as the fused products see it, whatever holds its weight.

A part is a view made anew for every call: which adapters are on, and whether something has to
be dropped, may change between two of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.linear import LinearGeometry
from ince.quant import Linear4bit

__all__ = ["Part", "part_of", "parts_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """``y = W x + bias + s · B(A drop(x))`` with W and bias frozen; A and B may be absent.

    Attributes:
        base: the frozen layer, (..., D) to (..., O).
        weight: gives W, (O, D), in the type of the products.
        a_RD: (R, D), b_OR: (O, R); both None where there is no adapter.
        s: scale of the update.
        p: dropout of its input.
    """

    base: Callable[[Tensor], Tensor]
    weight: Callable[[], Tensor]
    a_RD: Tensor | None = None
    b_OR: Tensor | None = None
    s: float = 1.0
    p: float = 0.0


def parts_of(layers: Sequence[nn.Module], x: Tensor) -> list[Part] | None:
    """`layers` as parts, or None where one of them is none, or a compiler looks."""
    if torch.compiler.is_compiling():
        return None
    parts: list[Part] = []
    for layer in layers:
        part = part_of(layer, x)
        if part is None:
            return None
        parts.append(part)
    return parts


def part_of(layer: nn.Module, x: Tensor) -> Part | None:
    """`layer` as a part; None where it is more, trains, or computes in another type."""
    if isinstance(layer, LoraLayer):
        return _adapted(layer, x)
    geometry = _geometry(layer)
    return None if geometry is None else _frozen(geometry, x)


def _geometry(layer: nn.Module) -> LinearGeometry | None:
    # A class of its own may compute something else: none but these two are known.
    return LinearGeometry(layer) if type(layer) in (nn.Linear, Linear4bit) else None


def _frozen(geometry: LinearGeometry, x: Tensor) -> Part | None:
    if x.dtype != geometry.compute_dtype or torch.is_autocast_enabled(x.device.type):
        return None
    parameters = cast("dict[str, Tensor | None]", geometry.base._parameters)
    if any(p is not None and p.requires_grad for p in parameters.values()):
        return None
    dtype = x.dtype
    return Part(geometry.base, lambda: geometry.frozen_weight(dtype))


def _adapted(layer: LoraLayer, x: Tensor) -> Part | None:
    state: Any = layer.state
    geometry = layer.geometry
    if state.routing is not None or layer.merged or not isinstance(geometry, LinearGeometry):
        return None
    part = _frozen(geometry, x)
    names = layer.active_here()
    if part is None or not names:
        return part
    if len(names) > 1:
        return None
    if layer.specs[names[0]].variant == "dora":
        return None  # asked before its factors, which take a norm of the whole weight
    factors = layer.factors(names[0])
    if not factors.is_plain:
        return None
    p = layer.dropout_of(names[0])
    return Part(part.base, part.weight, factors.a_RD, factors.b_OR, factors.s, p)
