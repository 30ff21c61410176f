"""LoRA itself: which tensors it has, and what they come to."""

import pytest
import torch
from torch import nn

from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.variants import VARIANTS

PLAIN = VARIANTS["lora"]


def adapt(base, spec):
    layer = LoraLayer(base.requires_grad_(False))
    layer.add_adapter("a", spec)
    with torch.no_grad():
        for tensor in layer.tensors("a").values():
            tensor.normal_()
    layer.state.active = ("a",)
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_the_tensors_of_a_layer(bias):
    shapes = PLAIN.shapes(geometry_of(nn.Linear(5, 4)), AdapterSpec(2, 2, 1.0, bias=bias))
    expected = {"lora_A.weight": (2, 5), "lora_B.weight": (4, 2)}
    assert shapes == expected | ({"lora_B.bias": (4,)} if bias else {})


def test_the_factors_are_the_parameters_themselves():
    layer = adapt(nn.Linear(5, 4), AdapterSpec(2, 2, 0.5, bias=True))
    factors = PLAIN.factors(layer, "a")
    assert factors.a_RD is layer.parameter("a", "lora_A.weight")
    assert factors.b_OR is layer.parameter("a", "lora_B.weight")
    assert factors.bias is layer.parameter("a", "lora_B.bias")
    assert (factors.s, factors.magnitude) == (0.5, None)


def test_the_bias_of_b_is_scaled_and_trained():
    layer = adapt(nn.Linear(5, 4), AdapterSpec(2, 2, 0.5, bias=True))
    x = torch.randn(3, 5)
    a, b = layer.factor_parameters("a")
    bias = layer.parameter("a", "lora_B.bias")
    y = layer(x)
    torch.testing.assert_close(y, layer.base_layer(x) + 0.5 * (x @ a.t() @ b.t() + bias))
    y.sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((4,), 1.5))


@pytest.mark.parametrize("base", [nn.Linear(5, 4), nn.Embedding(5, 4), nn.Conv1d(5, 4, 2)])
def test_a_start_is_taken_off(base):
    layer = adapt(base, AdapterSpec(2, 2, 0.5))
    start = [t.detach().clone() for t in layer.factor_parameters("a")]
    layer.set_start("a", *start)
    x = torch.arange(5) if isinstance(base, nn.Embedding) else torch.randn(5, 5)
    torch.testing.assert_close(layer(x), base(x))
    with torch.no_grad():
        layer.factor_parameters("a")[1].mul_(3)
        y = layer(x)
        layer.set_start("a", *[torch.zeros_like(t) for t in start])
        whole = layer(x)
        torch.testing.assert_close(y - base(x), (whole - base(x)) * 2 / 3)
