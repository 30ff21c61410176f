"""Gated activations on the CPU: half a unit of the last place off, and float32 rounding.

A float32 result of one activation is within 8 units of the last place where the activation does
not vanish. What vanishes is an exponential, whose argument's rounding is a share of the result
that grows with the argument: for GELU by tanh, by as many units as its inner argument. Numbers
below 2**-125 are zero.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import ACTIVATIONS, reference
from ince.ops.cpu.gated import gated_activation, gated_activation_backward_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = 2.0**-24
LEAST = 2.0**-125

cases = {
    "size": st.tuples(
        st.integers(0, 5), st.one_of(st.integers(0, 70), st.sampled_from((16_385, 33_000)))
    ),
    "dtype": st.sampled_from(DTYPES),
    "kind": st.sampled_from(ACTIVATIONS),
    "scale": st.sampled_from((1e-3, 1.0, 8.0, 60.0)),
    "seed": st.integers(0, 1000),
}


def exact(gate, kind):
    """act(gate) and its derivative in float64."""
    if kind == "gelu":
        share = torch.special.erfc(-gate / 2**0.5) / 2
        return gate * share, share + gate * torch.exp(-gate * gate / 2) / math.sqrt(2 * math.pi)
    inner, steepness = gate, torch.ones_like(gate)
    if kind == "gelu_tanh":
        factor = 2 * math.sqrt(2 / math.pi)
        inner = factor * (gate + 0.044715 * gate**3)
        steepness = factor * (1 + 3 * 0.044715 * gate**2)
    share = torch.sigmoid(inner)
    return gate * share, share + gate * steepness * share * torch.sigmoid(-inner)


def noise(gate, kind):
    """What float32 arithmetic may be off by: shares of the activation, and of its slope."""
    inner = (1.6 * (gate + 0.045 * gate**3)).abs() if kind == "gelu_tanh" else gate.abs()
    share = UNIT * (16 + (4 * inner if kind == "gelu_tanh" else 0))
    return share, UNIT * (16 + 8 * inner)


@given(**cases)
@settings(max_examples=60)
def test_each_result_is_rounded_once(in_each_set, assert_within, size, dtype, kind, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    gate, up, dh = torch.randn(3, *size, generator=generator)
    gate, up, dh = (gate * scale).to(dtype), up.to(dtype), dh.to(dtype)
    if gate.numel() > 3:
        gate.view(-1)[:3] = torch.tensor([0.0, 90.0, -90.0])
    args = (gate, up, kind)
    (h,) = in_each_set(lambda: (gated_activation(*args),))

    def backward():
        buffers = [tensor.clone() for tensor in (dh, gate, up)]
        gated_activation_backward_(*buffers, kind)
        return buffers

    again, d_gate, d_up = in_each_set(backward)
    assert torch.equal(again, h)
    wide_gate, wide_up, wide_dh = gate.double(), up.double(), dh.double()
    value, slope = exact(wide_gate, kind)
    share, of_slope = noise(wide_gate, kind)
    sharp = (wide_gate.abs() + 1) * of_slope
    for found, expected, slack in (
        (h, value * wide_up, share * (value * wide_up).abs()),
        (d_up, wide_dh * value, share * (value * wide_dh).abs()),
        (d_gate, wide_dh * wide_up * slope, sharp * (wide_dh * wide_up).abs()),
    ):
        assert found.dtype == dtype
        assert_within(found, expected, units=0.5, slack=slack + 100 * LEAST)
    expected = [tensor.clone() for tensor in (dh, gate, up)]
    reference.gated_activation_backward_(*expected, kind)
    for found, expected_one, slack in (
        (again, expected[0], 16 * share * (value * wide_up).abs()),
        (d_gate, expected[1], 2 * sharp * (wide_dh * wide_up).abs()),
        (d_up, expected[2], 16 * share * (value * wide_dh).abs()),
    ):
        # The reference's erfc has the rounding of its argument, squared in an exponent.
        tail = 4 * UNIT * wide_gate.square() * found.double().abs() if kind == "gelu" else 0
        assert_within(found, expected_one, units=1, slack=slack + tail + 100 * LEAST)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_float32_keeps_its_digits_where_an_activation_vanishes(in_each_set, kind):
    least = {"silu": -80.0, "gelu": -12.0, "gelu_tanh": -4.0}[kind]
    gate = torch.linspace(least, -least, 100_001)
    one = torch.ones_like(gate)
    (h,) = in_each_set(lambda: (gated_activation(gate, one, kind),))
    expected, _ = exact(gate.double(), kind)
    share = ((h.double() - expected) / expected).abs().nan_to_num()
    limit = {"silu": 6, "gelu": 10, "gelu_tanh": 40}[kind]
    assert float(share.max()) <= limit * UNIT


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_as_exact_as_the_chain_of_pytorch(kind, dtype):
    generator = torch.Generator().manual_seed(3)
    gate, up, dh = (torch.randn(3, 64, 500, generator=generator) * 2).to(dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in (gate, up)]
    how = {"approximate": "tanh"} if kind == "gelu_tanh" else {}
    act = torch.nn.functional.silu if kind == "silu" else torch.nn.functional.gelu
    chain = act(leaves[0], **how) * leaves[1]
    chain_grads = torch.autograd.grad(chain, leaves, dh)
    ours = [tensor.clone() for tensor in (dh, gate, up)]
    gated_activation_backward_(*ours, kind)
    value, slope = exact(gate.double(), kind)
    exacts = (value * up.double(), dh.double() * up.double() * slope, dh.double() * value)
    for our, theirs, expected in zip(ours, (chain, *chain_grads), exacts, strict=True):
        our_error = (our.double() - expected).square().mean()
        assert our_error <= (theirs.double() - expected).square().mean() * 1.05


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_halves_of_one_product_and_other_layouts(dtype, in_each_set):
    generator = torch.Generator().manual_seed(1)
    both = torch.randn(7, 300, generator=generator).to(dtype)
    dh = torch.randn(7, 150, generator=generator).to(dtype)
    gate, up = both[:, :150].contiguous(), both[:, 150:].contiguous()
    expected_h = gated_activation(gate, up, "silu")
    expected = [tensor.clone() for tensor in (dh, gate, up)]
    gated_activation_backward_(*expected, "silu")

    def in_halves():
        product = both.clone()
        views = (product[:, :150], product[:, 150:])
        h = gated_activation(*views, "silu")
        buffer = dh.T.contiguous().T
        gated_activation_backward_(buffer, *views, "silu")
        return h, buffer, *views

    found = in_each_set(in_halves)
    assert all(map(torch.equal, found, (expected_h, *expected)))


@pytest.mark.parametrize("shape", [(1,), (0,), (3, 0), (0, 3), (2, 1, 5)], ids=str)
def test_any_number_of_axes(shape):
    dh, gate, up = torch.randn(3, *shape)
    assert gated_activation(gate, up, "gelu").shape == shape
    gated_activation_backward_(dh, gate, up, "gelu")


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_is_what_it_is_for_the_reference(kind, dtype, in_each_set):
    gate = torch.tensor([math.inf, -math.inf, math.nan, 3e4, -3e4, 0.0, -0.0]).to(dtype)
    up = torch.ones_like(gate)
    (h,) = in_each_set(lambda: (gated_activation(gate, up, kind),))
    expected = reference.gated_activation(gate, up, kind)
    assert torch.equal(h.nan_to_num(), expected.nan_to_num())
    assert torch.equal(h.isnan(), expected.isnan())
