"""What an adapted layer merges to: one plain layer that computes the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ince.errors import AdapterError
from ince.lora.layers.spec import AdapterSpec

# Of torch itself, for bases that are drawn here.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@given(data=st.data())
@settings(max_examples=50)
def test_the_merged_layer_computes_what_the_adapters_do(some, data):
    case = data.draw(some())
    layer = case.layer().eval()
    with torch.no_grad():
        y = layer(case.x)
        merged = layer.merged_module(torch.float32)
        torch.testing.assert_close(merged(case.x), y, rtol=2e-4, atol=2e-4)
        layer.merge(layer.adapter_names(), torch.float32)
        assert torch.equal(layer(case.x), merged(case.x))
        layer.unmerge()
        assert torch.equal(layer(case.x), y)
    assert not any(p.requires_grad for p in merged.parameters())


@given(data=st.data())
@settings(max_examples=30)
def test_its_tensors_are_those_of_the_merged_layer(some, data):
    case = data.draw(some())
    layer = case.layer()
    expected = dict(layer.merged_module(torch.bfloat16).named_parameters())
    if layer.geometry.bias is None and "bias" in expected:
        with pytest.raises(AdapterError, match=r"no place for the adapter's bias.*\n.*x\.bias"):
            list(layer.merged_tensors("x.", torch.bfloat16))
        return
    found = {tensor.name: tensor for tensor in layer.merged_tensors("x.", torch.bfloat16)}
    assert {name: tensor.shape for name, tensor in found.items()} == {
        f"x.{name}": tuple(tensor.shape) for name, tensor in expected.items()
    }
    for name, tensor in found.items():
        assert torch.equal(tensor.compute(), expected[name.removeprefix("x.")])


@given(data=st.data())
@settings(max_examples=30)
def test_what_each_adapter_changes_adds_up(some, data):
    case = data.draw(some())
    layer = case.layer()
    changes = [layer.get_delta_weight(name) for name in layer.adapter_names()]
    layer.state.active = ()
    plain = layer.merged_weight(torch.float32)
    assert all(change.shape == plain.shape for change in changes)
    merged = layer.merged_weight(torch.float32, layer.adapter_names())
    torch.testing.assert_close(plain + sum(changes), merged, rtol=1e-4, atol=1e-4)


def test_the_bias_is_scaled_as_in_the_forward(make):
    layer = make(nn.Linear(3, 2), AdapterSpec(1, 4, 4.0, bias=True))
    bias = layer.parameter("0", "lora_B.bias")
    torch.testing.assert_close(layer.merged_bias(torch.float32), layer.base_layer.bias + 4.0 * bias)
    none = make(nn.Linear(3, 2, bias=False), AdapterSpec(1, 4, 4.0, bias=True))
    merged = none.merged_module(torch.float32)
    torch.testing.assert_close(merged.bias, 4.0 * none.parameter("0", "lora_B.bias"))


def test_nothing_is_shared_with_the_base(make):
    layer = make(nn.Linear(3, 2), AdapterSpec(1, 1, 1.0))
    merged = layer.merged_module(torch.float32)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert layer.base_layer.weight.any()
    assert layer.base_layer.bias.any()


def test_what_is_merged_moves_and_casts_with_the_layer(make):
    layer = make(nn.Linear(3, 2), AdapterSpec(1, 1, 1.0))
    layer.merge(["0"], torch.float32)
    layer.to(torch.bfloat16)
    assert layer(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.to("meta")
    assert layer(torch.ones(1, 3, dtype=torch.bfloat16, device="meta")).is_meta


def test_deleting_a_merged_adapter_unmerges(make):
    layer = make(nn.Linear(3, 2), AdapterSpec(1, 1, 1.0))
    layer.merge(["0"], torch.float32)
    layer.delete_adapter("0")
    x = torch.ones(1, 3)
    assert not layer.merged
    assert torch.equal(layer(x), layer.base_layer(x))
