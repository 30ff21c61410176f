"""q, k and v together equal q, k and v apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ince.lora.fused import joint_linear, part_of

DTYPES = (torch.float32, torch.bfloat16)


def apart(layers):
    return lambda x: tuple(layer(x) for layer in layers)


def together(layers):
    return lambda x: joint_linear(x, layers)


@settings(max_examples=20)
@given(
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    shape=st.sampled_from([(1, 1), (3, 5), (2, 7)]),
    bias=st.booleans(),
    p=st.sampled_from([0.0, 0.3]),
)
def test_in_float64_it_is_the_definition(make_layer, gradients, same, ranks, shape, bias, p):
    layers = [
        make_layer(6, 3 + i, r=r, p=p, bias=bias, dtype=torch.float64, seed=i)
        for i, r in enumerate(ranks)
    ]
    x = torch.randn(*shape, 6, dtype=torch.float64)
    same(gradients(apart(layers), x, layers), gradients(together(layers), x, layers), 1e-12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", DTYPES)
def test_over_16_and_4_bits_it_differs_by_rounding(make_layer, gradients, same, dtype, p, packed):
    layers = [make_layer(64, n, dtype=dtype, p=p, packed=packed, seed=n) for n in (96, 32, 32)]
    x = torch.randn(2, 9, 64).to(dtype)
    bound = 1e-5 if dtype == torch.float32 else 0.03
    same(gradients(apart(layers), x, layers), gradients(together(layers), x, layers), bound)


def test_an_input_without_gradient_gets_none(make_layer):
    layers = [make_layer(8, 8, seed=i) for i in range(3)]
    q, k, v = joint_linear(torch.randn(4, 8), layers)
    (q.sum() + k.sum() + v.sum()).backward()
    assert all(
        p.grad is not None for layer in layers for p in layer.parameters() if p.requires_grad
    )


def test_a_frozen_factor_keeps_no_input(make_layer):
    layers = [make_layer(16, 8, seed=i) for i in range(2)]
    for layer in layers:
        layer.parameter("default", "lora_A.weight").requires_grad_(False)
    x = torch.randn(5, 16, requires_grad=True)
    y, _ = joint_linear(x, layers)
    assert not any(t is not None and t.shape == x.shape for t in y.grad_fn.saved_tensors)


@pytest.mark.parametrize("spoil", ["trains", "dtype", "two", "merged", "class"])
def test_what_it_is_not_made_for_computes_apart(make_layer, spoil):
    layers = [make_layer(8, 8, seed=i) for i in range(3)]
    x = torch.randn(2, 8)
    if spoil == "trains":
        layers[1].base_layer.weight.requires_grad_(True)
    elif spoil == "dtype":
        x = x.bfloat16()
    elif spoil == "two":
        layers[0].add_adapter("other", layers[0].specs["default"])
        layers[0].state.active = ("default", "other")
    elif spoil == "merged":
        layers[2].merge(["default"], torch.float32)
    else:

        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        layers[0] = Doubled(8, 8).requires_grad_(False)
    assert joint_linear(x, layers) is None


def test_an_adapter_that_is_off_leaves_the_base(make_layer):
    layer = make_layer(8, 8)
    layer.state.disabled = True
    part = part_of(layer, torch.randn(2, 8))
    assert part is not None
    assert part.a_RD is None
