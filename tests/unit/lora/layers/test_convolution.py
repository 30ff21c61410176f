"""Adapters of convolutions: of the base's stride, padding and dilation; and with groups."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.spec import AdapterSpec

LORA = AdapterSpec(4, 4, 1.5)


@pytest.mark.parametrize(
    ("base", "shapes"),
    [
        (nn.Conv1d(3, 8, 5), ((4, 3, 5), (8, 4, 1))),
        (nn.Conv2d(3, 8, (5, 2)), ((4, 3, 5, 2), (8, 4, 1, 1))),
        (nn.Conv3d(3, 8, 2), ((4, 3, 2, 2, 2), (8, 4, 1, 1, 1))),
        (nn.Conv1d(6, 8, 5, groups=2), ((4, 6, 5), (8, 2, 1))),
    ],
)
def test_shapes_of_the_file(make, base, shapes):
    layer = make(base, LORA)
    assert [tuple(t.shape) for t in layer.tensors("0").values()] == list(shapes)
    assert (layer.in_features, layer.out_features) == (base.in_channels, 8)


SETTINGS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 3},
    "same": {"padding": "same", "dilation": 3},
    "valid": {"padding": "valid"},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "reflected and same": {"padding": "same", "padding_mode": "reflect"},
    "repeated": {"padding": 2, "padding_mode": "replicate", "stride": 3},
}


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize("batch", [(2,), ()])
@pytest.mark.parametrize("num_space", [1, 2])
def test_the_update_stands_beside_the_weight(make, values, variant, batch, num_space):
    torch.manual_seed(0)
    base = (nn.Conv1d, nn.Conv2d)[num_space - 1](3, 8, 3, **values)
    layer = make(base, AdapterSpec(4, 4, 1.5, variant=variant, bias=True))
    x = torch.randn(*batch, 3, *(9,) * num_space)
    merged = layer.merged_module(torch.float32)
    assert layer(x).shape == base(x).shape
    torch.testing.assert_close(layer(x), merged(x), rtol=1e-4, atol=1e-5)


def test_an_even_kernel_keeps_its_place(make):
    # Where sides are unequal, it is the right one that is longer.
    base = nn.Conv1d(3, 8, 4, padding="same", padding_mode="circular")
    layer = make(base, LORA)
    x = torch.randn(2, 3, 9)
    torch.testing.assert_close(layer(x), layer.merged_module(torch.float32)(x))


def grouped(make, **values):
    torch.manual_seed(0)
    return make(nn.Conv2d(6, 8, 3, groups=2, **values), LORA)


def test_with_groups_a_sees_all_inputs_and_b_its_own_ranks(make):
    layer = grouped(make, stride=2)
    a, b = layer.factor_parameters("0")
    x = torch.randn(2, 6, 9, 9)
    low = nn.functional.conv2d(x, a, stride=2)
    expected = layer.base_layer(x) + 1.5 * nn.functional.conv2d(low, b, groups=2)
    torch.testing.assert_close(layer(x), expected)
    factors, geometry = layer.factors("0"), layer.geometry
    assert geometry.weight_matrix(torch.float32).shape == factors.delta().shape == (8, 54)
    dense = nn.Conv2d(6, 8, 3, stride=2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(factors.delta().view(8, 6, 3, 3))
    torch.testing.assert_close(layer(x) - layer.base_layer(x), dense(x), rtol=1e-4, atol=1e-5)


def test_what_reaches_across_groups_is_not_merged(make):
    layer = grouped(make)
    with pytest.raises(AdapterError, match="across the groups"):
        layer.merged_weight(torch.float32)
    layer.state.active = ()
    assert torch.equal(layer.merged_weight(torch.float32), layer.base_layer.weight)
    with pytest.raises(AdapterError, match="across the groups"):
        layer.merge(["0"], torch.float32)
    assert not layer.merged


def test_what_stays_in_its_group_is(make):
    layer = grouped(make)
    a, _ = layer.factor_parameters("0")
    with torch.no_grad():
        a[:2, 3:] = 0
        a[2:, :3] = 0
        x = torch.randn(2, 6, 5, 5)
        merged = layer.merged_module(torch.float32)
        torch.testing.assert_close(merged(x), layer(x), rtol=1e-4, atol=1e-5)


def test_gradients_with_groups_reach_b_as_it_is_kept(make):
    layer = grouped(make)
    layer(torch.randn(2, 6, 5, 5)).square().sum().backward()
    for tensor in layer.tensors("0").values():
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.count_nonzero() == tensor.numel()


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (AdapterSpec(3, 3, 1.0), "do not divide the rank 3"),
        (AdapterSpec(4, 4, 1.0, variant="dora"), "takes no use_dora"),
    ],
)
def test_what_groups_do_not_carry_is_refused(make, spec, what):
    with pytest.raises(AdapterError, match=what):
        make(nn.Conv1d(4, 4, 3, groups=2), spec)


def test_the_matrix_has_the_kernel_in_its_rows():
    base = nn.Conv2d(3, 8, (2, 4))
    geometry = geometry_of(base)
    matrix = geometry.weight_matrix(torch.float32)
    assert torch.equal(matrix, base.weight.flatten(1))
    assert torch.equal(geometry.to_layout(matrix), base.weight)
    matrix.zero_()
    assert base.weight.any()
