"""Layers with several adapters, and the plain truth about them: each row on its own."""

import pytest
import torch
from torch import nn

from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.mixed import BASE


@pytest.fixture
def make_layer():
    """A function: an adapted layer with random factors, frozen, in evaluation mode."""

    def make(base=None, *, ranks=(4, 4, 4), doras=(), biased=(), dropout=0.0, seed=0):
        torch.manual_seed(seed)
        base = nn.Linear(12, 10) if base is None else base
        layer = LoraLayer(base.requires_grad_(False)).eval()
        for i, r in enumerate(ranks):
            spec = AdapterSpec(
                r=r,
                alpha=8,
                scaling=0.5 + i / 4,
                dropout=dropout,
                variant="dora" if i in doras else "lora",
                bias=i in biased,
            )
            layer.add_adapter(f"a{i}", spec)
            for tensor in layer.tensors(f"a{i}").values():
                nn.init.normal_(tensor)
        return layer.requires_grad_(False)

    return make


@pytest.fixture
def row_by_row():
    """A function: what the layer gives when each row has its own forward with one adapter."""

    def rows(layer, x, names):
        before = layer.state.routing
        layer.state.routing = None
        k = x.shape[0] // len(names)
        parts = []
        for row, part in enumerate(x.split(1)):
            name = names[row // k]
            layer.state.active = () if name == BASE or name not in layer.specs else (name,)
            parts.append(layer(part))
        layer.state.active, layer.state.routing = (), before
        return torch.cat(parts)

    return rows
