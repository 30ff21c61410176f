"""`mixed_forward`: what an adapted layer computes while a `Routing` is set.

It decides, and leaves the arithmetic to `ince.lora.mixed.product`: nothing to add, the
definition (gradients, dropout, layers that are not linear, other precisions), or in place on the
base's output.
"""

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ince.lora.factors import Factors
from ince.lora.mixed.product import (
    Multiplies,
    add_runs,
    add_sorted,
    add_stacked,
    mixed_reference,
)
from ince.lora.mixed.routing import Routing
from ince.lora.mixed.stack import StackCache
from ince.lora.mixed.ways import MAX_STACKED_ROWS, choose_way

__all__ = ["MixedLayer", "mixed_forward"]


class _Multiplies(Multiplies, Protocol):
    @property
    def channel_dim(self) -> int:
        """Where outputs lie in the layer's result: -1, or 1."""
        ...


class MixedLayer(Protocol):
    """What is asked of a layer; `ince.lora.layers.layer.LoraLayer` is one."""

    training: bool
    stacks: StackCache

    @property
    def base_layer(self) -> nn.Module:
        """The layer as it was."""
        ...

    @property
    def specs(self) -> Mapping[str, object]:
        """By adapter, those of this layer."""
        ...

    @property
    def geometry(self) -> _Multiplies:
        """How the base multiplies."""
        ...

    def factors(self, adapter_name: str) -> Factors:
        """What an adapter adds here."""
        ...

    def dropout_of(self, adapter_name: str) -> float:
        """The dropout that applies now."""
        ...


def mixed_forward(
    layer: MixedLayer, x: Tensor, routing: Routing, *, base_output: Tensor | None = None
) -> Tensor:
    """The layer's output, each row with its own adapter.

    Args:
        layer: an adapted layer. Rows of adapters that it does not have are the base's.
        x: what it takes; the first dimension is the batch's B rows, or B · k.
        routing: of the batch.
        base_output: what the base makes of x, if the caller has it; changed in place where no
            gradient is asked for.

    Raises:
        AdapterError: the first dimension is not B · k.
    """
    y = layer.base_layer(x) if base_output is None else base_output
    specs = layer.specs
    adapters = tuple([name for name in routing.adapters if name in specs])
    plan = routing.rows(x.shape[0] if x.ndim else 1, adapters)  # whoever has the rows: checked
    if not adapters or x.numel() == 0:
        return y
    if _is_linear_and_frozen(layer, adapters, x, y):
        added = _added(layer, x, y, routing, adapters)
        if added is not None:
            return added
    return mixed_reference(
        x,
        y,
        [layer.factors(name) for name in adapters],
        plan,
        layer.geometry,
        base=layer.base_layer,
        dropout=[layer.dropout_of(name) for name in adapters],
    )


def _is_linear_and_frozen(
    layer: MixedLayer, adapters: tuple[str, ...], x: Tensor, y: Tensor
) -> bool:
    """Whether a product over rows is all that is asked for, but for gradients of the factors."""
    if not x.is_floating_point() or x.dtype != y.dtype or layer.geometry.channel_dim != -1:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return False
    if layer.training and any(layer.dropout_of(name) > 0 for name in adapters):
        return False
    # Addresses and counts of changes mean nothing to a compiler.
    return not (torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling())


def _added(
    layer: MixedLayer, x: Tensor, y: Tensor, routing: Routing, adapters: tuple[str, ...]
) -> Tensor | None:
    """y with the updates added in place; None, and y as it was, when a factor wants gradients."""
    num_in, num_out = x.shape[-1], y.shape[-1]
    num_rows = x.numel() // num_in
    stacks, dtype = layer.stacks, x.dtype
    stack = stacks.find(adapters, dtype, routing) if num_rows <= MAX_STACKED_ROWS else None
    if stack is not None:
        adapters = stack.adapters  # in the order in which they are stacked
    is_grad_enabled = torch.is_grad_enabled()
    factors: list[Factors] = []
    if stack is None or (is_grad_enabled and stacks.requires_grad):
        factors = [layer.factors(name) for name in adapters]
        if is_grad_enabled and any(_is_trained(f) for f in factors):
            return None
    plan = routing.rows(num_rows, adapters)
    ranks = stack.ranks if stack is not None else tuple([f.a_RD.shape[0] for f in factors])
    way = choose_way(plan, ranks, num_in, num_out, itemsize=dtype.itemsize)
    with torch.no_grad():
        y = y if y.is_contiguous() else y.contiguous()
        x_ND, y_NO = x.reshape(-1, num_in), y.view(-1, num_out)
        if way == "stacked" and stack is None:
            bias = layer.geometry.bias
            stack = stacks.make(cast(nn.Module, layer), adapters, factors, bias, dtype, routing)
            if stack is None:
                way = choose_way(
                    plan, ranks, num_in, num_out, itemsize=dtype.itemsize, may_stack=False
                )
        if way == "stacked" and stack is not None:
            add_stacked(x_ND, y_NO, stack, plan)
            return y
        factors = factors or [layer.factors(name) for name in adapters]
        add = add_runs if way == "runs" else add_sorted
        add(x_ND, y_NO, factors, plan, layer.geometry.bias)
    return y


def _is_trained(f: Factors) -> bool:
    tensors = (f.a_RD, f.b_OR, f.bias, f.magnitude)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
