"""A gated block as one function equals its layers one after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ince.lora.fused import gated_mlp

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def apart(layers, activation):
    gate, up, down = layers
    return lambda x: down(ACTIVATIONS[activation](gate(x)) * up(x))


def together(layers, activation):
    return lambda x: gated_mlp(x, *layers, activation)


def block(make_layer, width, wide, *, ranks=(4, 4, 4), **options):
    sizes = ((width, wide), (width, wide), (wide, width))
    return [
        make_layer(*size, r=r, seed=i, **options)
        for i, (size, r) in enumerate(zip(sizes, ranks, strict=True))
    ]


@settings(max_examples=20)
@given(
    ranks=st.tuples(*[st.integers(0, 4)] * 3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    shape=st.sampled_from([(1, 1), (3, 5)]),
    bias=st.booleans(),
    p=st.sampled_from([0.0, 0.3]),
)
def test_it_is_the_definition(make_layer, gradients, same, ranks, activation, shape, bias, p):
    layers = block(make_layer, 6, 10, ranks=ranks, p=p, bias=bias)
    x = torch.randn(*shape, 6)
    own = gradients(apart(layers, activation), x, layers)
    same(own, gradients(together(layers, activation), x, layers), 2e-5)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_it_is_as_near_to_float64_as_its_layers_are(make_layer, gradients, activation):
    layers = block(make_layer, 32, 64)
    exact = block(make_layer, 32, 64, dtype=torch.float64)
    x = torch.randn(4, 9, 32)
    truth = gradients(apart(exact, activation), x.double(), exact)
    for ways in (apart, together):
        found = gradients(ways(layers, activation), x, layers)
        for a, b in zip(truth, found, strict=True):
            assert float((a - b.double()).abs().max() / a.abs().max()) < 2e-5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_in_bfloat16_it_differs_by_rounding(make_layer, gradients, same, p, packed):
    layers = block(make_layer, 64, 128, dtype=torch.bfloat16, p=p, packed=packed)
    x = torch.randn(2, 9, 64).bfloat16()
    own = gradients(apart(layers, "silu"), x, layers)
    same(own, gradients(together(layers, "silu"), x, layers), 0.04)


def test_neither_h_nor_a_weight_in_floats_is_kept(make_layer):
    layers = block(make_layer, 64, 96, packed=True)
    x = torch.randn(5, 64, requires_grad=True)
    y = gated_mlp(x, *layers, "silu")
    kept = [tuple(t.shape) for t in y.grad_fn.saved_tensors if t is not None]
    assert kept.count((5, 96)) == 2
    assert (96, 64) not in kept
    assert (64, 96) not in kept


def test_the_backward_pass_is_taken_once(make_layer):
    layers = block(make_layer, 8, 8)
    y = gated_mlp(torch.randn(3, 8, requires_grad=True), *layers, "silu").sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_layer_that_is_more_computes_apart(make_layer):
    layers = block(make_layer, 8, 8)
    layers[2].merge(["default"], torch.float32)
    assert gated_mlp(torch.randn(2, 8), *layers, "silu") is None
