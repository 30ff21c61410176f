import pytest
import torch
from torch import nn

from ince.errors import QuantError
from ince.quant import (
    Experts4bit,
    Linear4bit,
    NF4Config,
    num_weights,
    packed_modules,
    packed_weight_name,
    weight_bytes,
    weight_of,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_is_the_callers_to_change(dtype):
    linear = nn.Linear(8, 4).to(dtype)
    layer = Linear4bit.from_linear(linear, NF4Config())
    for module in (linear, layer):
        weight = weight_of(module, dtype)
        assert (weight.shape, weight.dtype, weight.requires_grad) == ((4, 8), dtype, False)
        before = weight.clone()
        weight.zero_()
        assert torch.equal(weight_of(module, dtype), before)


def test_float32_is_the_default():
    linear = nn.Linear(8, 4).bfloat16()
    assert weight_of(linear).dtype == torch.float32
    assert weight_of(Linear4bit.from_linear(linear, NF4Config())).dtype == torch.float32


def test_other_modules_have_no_such_weight():
    with pytest.raises(QuantError, match="not a linear layer"):
        weight_of(nn.Embedding(4, 4))


def test_packed_weights_count_as_what_they_stand_for():
    linear = nn.Linear(64, 32)
    layer = Linear4bit.from_linear(linear, NF4Config(double_quant=False))
    assert num_weights(layer) == num_weights(linear) == 64 * 32 + 32
    assert weight_bytes(linear) == 4 * (64 * 32 + 32)
    assert weight_bytes(layer) == 64 * 32 // 2 + 4 * 32 + 4 * 32


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    model[1].weight = model[0].weight
    assert num_weights(model) == 80


def test_packed_modules_are_listed_with_the_names_of_their_weights():
    stack = Experts4bit.from_weight(torch.randn(2, 4, 64), config=NF4Config())
    layer = Linear4bit.from_linear(nn.Linear(64, 8), NF4Config())
    model = nn.ModuleDict(
        {"q": layer, "experts": nn.ModuleDict({"down": stack}), "norm": nn.LayerNorm(8)}
    )
    packed = packed_modules(model)
    assert packed == {"q": layer, "experts.down": stack}
    assert [packed_weight_name(*item) for item in packed.items()] == ["q.weight", "experts.down"]
    assert packed_weight_name("", layer) == "weight"
    assert num_weights(model) == 2 * 4 * 64 + 64 * 8 + 8 + 16


def test_a_packed_layer_says_what_is_known_of_its_weight():
    weight = Linear4bit.from_linear(nn.Linear(64, 8), NF4Config()).weight
    assert weight.shape == (8, 64)
    assert weight.dtype == torch.bfloat16
    assert weight.device.type == "cpu"
    assert not weight.requires_grad
    assert not isinstance(weight, torch.Tensor)
