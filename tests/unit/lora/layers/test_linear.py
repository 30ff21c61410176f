"""Linear layers, in each way of keeping the weight."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.spec import AdapterSpec
from ince.quant import Linear4bit, NF4Config

FLOAT32 = NF4Config(compute_dtype="float32")


def bases():
    torch.manual_seed(0)
    linear = nn.Linear(8, 6)
    transposed = Conv1D(6, 8)
    with torch.no_grad():
        transposed.weight.copy_(linear.weight.t())
        transposed.bias.copy_(linear.bias)
    return {
        "linear": linear,
        "transposed": transposed,
        "4 bits": Linear4bit.from_linear(linear, FLOAT32),
    }


@pytest.mark.parametrize("kind", bases())
def test_one_matrix_however_it_is_kept(kind):
    base = bases()[kind]
    geometry = geometry_of(base)
    assert (geometry.in_features, geometry.out_features) == (8, 6)
    assert geometry.factor_shapes(3) == {"lora_A.weight": (3, 8), "lora_B.weight": (6, 3)}
    matrix = geometry.weight_matrix(torch.float32)
    assert matrix.shape == (6, 8)
    x = torch.randn(2, 8)
    torch.testing.assert_close(x @ matrix.t() + base.bias, base(x))
    assert geometry.to_layout(matrix).shape == geometry.weight_shape
    assert torch.equal(geometry.frozen_weight(torch.float32), matrix)
    (block,) = geometry.blocks()
    assert torch.equal(block.weight_OD, matrix)
    matrix.zero_()
    assert geometry.weight_matrix(torch.float32).any()


def test_a_transposed_layer_trains_as_the_linear_one(make):
    results = []
    for kind in ("linear", "transposed"):
        layer = make(bases()[kind], AdapterSpec(2, 2, 1.5, dropout=0.3, variant="dora"))
        layer.eval()
        x = torch.ones(3, 8, requires_grad=True)
        y = layer(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(t.grad for t in layer.tensors("0").values())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_merged_layer_is_of_its_kind(make):
    for kind, expected in (("linear", nn.Linear), ("transposed", Conv1D), ("4 bits", nn.Linear)):
        layer = make(bases()[kind], AdapterSpec(2, 2, 1.5))
        merged = layer.merged_module(torch.float32)
        assert type(merged) is expected
        assert merged.weight.shape == layer.geometry.weight_shape
        assert merged.weight.is_contiguous()
        x = torch.randn(3, 8)
        torch.testing.assert_close(merged(x), layer(x))


def test_no_weight_is_kept_for_the_backward_pass_of_a_transposed_layer(make):
    layer = make(Conv1D(64, 64), AdapterSpec(2, 2, 1.5))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(torch.randn(3, 64, requires_grad=True))
    assert max(tensor.numel() for tensor in saved) < 64 * 64
