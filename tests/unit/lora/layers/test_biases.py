"""Biases of an adapter's own, over any module."""

import pytest
import torch
from torch import nn

from ince.lora.layers.biases import OwnBias
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.parameter_layer import ParameterLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.mixed.routing import Routing
from ince.quant import Linear4bit, NF4Config

X = torch.linspace(-1, 1, 192).view(3, 64)


class Router(nn.Module):
    """As that of a MoE: it owns its weight, and gives more than one thing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 64))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        logits = nn.functional.linear(x, self.weight, self.bias)
        return logits, logits.softmax(-1)


def linear():
    return nn.Linear(64, 8)


def packed():
    return Linear4bit.from_linear(nn.Linear(64, 8), NF4Config(compute_dtype="float32"))


def norm():
    return nn.LayerNorm(64)


def factors():
    layer = LoraLayer(linear(), AdapterState(active=("a",)))
    layer.add_adapter("a", AdapterSpec(2, 2, 1.0))
    fill(layer)
    return layer


def parameter():
    layer = ParameterLayer(Router().requires_grad_(False), "weight", AdapterState(active=("a",)))
    layer.add_adapter("a", AdapterSpec(2, 2, 1.0))
    fill(layer)
    return layer


def fill(layer):
    with torch.no_grad():
        for tensor in layer.tensors("a").values():
            tensor.normal_()


def own(make, *names):
    torch.manual_seed(0)
    inner = make().requires_grad_(False)
    state = inner.state if hasattr(inner, "state") else AdapterState(active=("a",))
    module = OwnBias(inner, state)
    for name in names or ("a",):
        module.add_adapter(name)
        with torch.no_grad():
            module.own_bias[name].normal_()
    return module


def first(output):
    return output[0] if isinstance(output, tuple) else output


KINDS = [linear, packed, norm, factors, Router, parameter]


@pytest.mark.parametrize("make", KINDS)
def test_the_output_has_the_adapters_bias(make):
    module = own(make)
    y = first(module(X))
    shift = module.own_bias["a"] - module.get_base_layer().bias
    torch.testing.assert_close(y, first(module.base_layer(X)) + shift)
    y.sum().backward()
    torch.testing.assert_close(module.own_bias["a"].grad, torch.full_like(shift, 3.0))
    assert module.get_base_layer().bias.grad is None


@pytest.mark.parametrize("make", KINDS)
def test_switching_and_several(make):
    module = own(make, "a", "b")
    base = module.get_base_layer()
    plain, bias = first(base(X)), base.bias.clone()
    module.state.disabled = True
    assert first(module(X)).equal(plain)
    module.state.disabled, module.state.active = False, ("b",)
    torch.testing.assert_close(first(module(X)), plain + module.own_bias["b"] - bias)
    one = first(module(X)) - plain
    module.state.active = ("a",)
    other = first(module(X)) - plain
    module.state.active = ("a", "b")
    torch.testing.assert_close(first(module(X)), plain + one + other)
    module.delete_adapter("a")
    assert module.adapter_names() == ("b",)
    assert base.bias.equal(bias)


@pytest.mark.parametrize("make", KINDS)
def test_merging(make):
    module = own(make)
    merged = module.merged_module(torch.float32)
    assert first(merged(X)).allclose(first(module(X)), atol=1e-5)
    named = {tensor.name: tensor.compute() for tensor in module.merged_tensors("", torch.float32)}
    assert named["bias"].equal(merged.bias)
    assert named["weight"].equal(merged.weight)


@pytest.mark.parametrize("make", KINDS)
def test_rows_of_a_mixed_batch(make):
    module = own(make, "a", "b")
    module.state.routing = Routing(["b", "__base__", "a"])
    y = first(module(X))
    module.state.routing = None
    for row, active in enumerate((("b",), (), ("a",))):
        module.state.active = active
        torch.testing.assert_close(y[row], first(module(X))[row])


@pytest.mark.parametrize("make", KINDS)
def test_names_are_pefts(make):
    has_factors = make in (factors, parameter)
    names = set(own(make).tensors("a"))
    assert ("base_layer.bias" if has_factors else "bias") in names
    assert len(names) == (3 if has_factors else 1)


def test_the_weight_stays_tied():
    module = own(linear)
    assert module.weight_key() == (id(module.base_layer.weight),)
