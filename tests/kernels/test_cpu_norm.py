"""The norm's CPU kernels: within one unit of the last place of the exact result, in any shape.

A float32 result may be off by four units, as it is of three or four operations, each rounded.
Where a gradient's two terms cancel, what is left has the rounding errors of the terms.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import reference
from ince.ops.cpu.norm import rms_norm, rms_norm_add_input_grad_, rms_norm_input_grad
from ince.ops.norm import multiplier, rounds_before_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5
UNIT = 2.0**-24  # what a float32 operation rounds by, as a share

sizes = st.tuples(
    st.integers(0, 9), st.one_of(st.integers(1, 70), st.sampled_from((511, 512, 513, 1537)))
)
cases = {
    "size": sizes,
    "dtype": st.sampled_from(DTYPES),
    "scale": st.sampled_from((1e-4, 1.0, 30.0)),
    "offset": st.sampled_from((0.0, 1.0)),
    "weight_in_float32": st.booleans(),
    "is_wide": st.booleans(),
    "seed": st.integers(0, 1000),
}


def drawn(size, dtype, scale, seed, *, is_wide=False):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(size, generator=generator) * scale).to(dtype)
    weight = torch.randn(size[1], generator=generator).to(torch.float32 if is_wide else dtype)
    dy = torch.randn(size, generator=generator)
    return x, weight, dy


def units_of(dtype):
    return 4 if dtype == torch.float32 else 1


@given(**cases)
@settings(max_examples=60)
def test_rows_are_normalized(
    in_each_set, assert_within, size, dtype, scale, offset, weight_in_float32, is_wide, seed
):
    x, weight, _ = drawn(size, dtype, scale, seed, is_wide=is_wide)
    args = (x, weight, EPS, offset, weight_in_float32)
    y, rstd = in_each_set(lambda: rms_norm(*args))
    expected, expected_rstd = reference.rms_norm(*args)
    assert (y.dtype, rstd.dtype) == (expected.dtype, torch.float32)
    exact_rstd = (x.double().square().mean(-1) + EPS).rsqrt()
    assert_within(rstd, exact_rstd, units=3)
    assert_within(rstd, expected_rstd, units=6)
    if rounds_before_weight(offset, weight_in_float32):
        # A normalized number may be rounded to either neighbor, which the weight multiplies.
        units = 2 if y.dtype == dtype else 2.0**16
        assert_within(y, expected, units=max(units, units_of(y.dtype)))
    else:
        exact = x.double() * exact_rstd[..., None] * multiplier(weight, offset).double()
        assert_within(y, exact, units=units_of(y.dtype))
        assert_within(y, expected, units=units_of(y.dtype))


@given(**cases)
@settings(max_examples=60)
def test_gradients_are_exact(
    in_each_set, assert_within, size, dtype, scale, offset, weight_in_float32, is_wide, seed
):
    x, weight, dy = drawn(size, dtype, scale, seed, is_wide=is_wide)
    rstd = reference.rms_norm(x, weight, EPS, offset, weight_in_float32)[1]
    dy = dy.to(torch.float32 if is_wide else dtype)
    args = (dy, x, weight, rstd, offset)
    (dx,) = in_each_set(lambda: (rms_norm_input_grad(*args),))
    g = dy.double() * (weight.double() + offset)
    n = x.double() * rstd.double()[..., None]
    terms = rstd.double()[..., None] * torch.stack((g, n * (g * n).mean(-1, keepdim=True)))
    noise = rstd.double()[..., None] * n.abs() * (g * n).abs().mean(-1, keepdim=True)
    slack = 8 * UNIT * (terms.abs().sum(0) + noise)
    assert dx.dtype == dtype
    assert_within(dx, terms[0] - terms[1], units=0.51, slack=slack)
    assert_within(dx, reference.rms_norm_input_grad(*args), units=1, slack=2 * slack)
    residual = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def added():
        total = residual.clone()
        rms_norm_add_input_grad_(total, *args)
        return (total,)

    (total,) = in_each_set(added)
    exact = residual.double() + terms[0] - terms[1]
    slack = slack + UNIT * residual.double().abs()
    assert_within(total, exact, units=0.51, slack=slack)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_that_do_not_lie_in_one_piece(in_each_set, dtype):
    x, weight, dy = drawn((12, 66), dtype, 1.0, 0)
    dy = dy.to(dtype)
    wide = torch.randn(12, 200).to(dtype)
    layouts = {
        "slice": wide[:, 50:116],
        "transposed": torch.empty(66, 12, dtype=dtype).T,
        "heads": torch.empty(4, 3, 66, dtype=dtype).transpose(0, 1).reshape(12, 66),
        "gaps": torch.empty(12, 132, dtype=dtype)[:, ::2],
    }
    expected = in_each_set(lambda: rms_norm(x, weight, EPS, 0.0, False))
    expected_dx = rms_norm_input_grad(dy, x, weight, expected[1], 0.0)
    for place in layouts.values():
        place.copy_(x)
        found = in_each_set(lambda place=place: rms_norm(place, weight, EPS, 0.0, False))
        assert all(map(torch.equal, found, expected))
        other = torch.empty_like(place).copy_(dy)
        dx = rms_norm_input_grad(other, place, weight, expected[1], 0.0)
        assert torch.equal(dx, expected_dx)
        total = place.clone(memory_format=torch.preserve_format).zero_()
        rms_norm_add_input_grad_(total, other, place, weight, expected[1], 0.0)
        assert torch.equal(total, expected_dx)


def test_axes_before_the_last_and_strides_of_one_row():
    weight = torch.randn(8)
    for lead in ((), (1,), (0,), (2, 0), (2, 3), (1, 1, 1)):
        x = torch.randn(*lead, 8)
        y, rstd = rms_norm(x, weight, EPS, 0.0, False)
        assert (y.shape, rstd.shape) == (x.shape, lead)
        torch.testing.assert_close(y, reference.rms_norm(x, weight, EPS, 0.0, False)[0])
    heads = torch.randn(2, 5, 3, 8).transpose(1, 2)  # (2, 3, 5, 8), not in one piece
    y, _ = rms_norm(heads, weight, EPS, 0.0, False)
    torch.testing.assert_close(y, reference.rms_norm(heads, weight, EPS, 0.0, False)[0])
    repeated = torch.randn(1, 8).expand(4, 8)
    y, _ = rms_norm(repeated, weight, EPS, 0.0, False)
    torch.testing.assert_close(y, reference.rms_norm(repeated, weight, EPS, 0.0, False)[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_its_own_row_alone(in_each_set, value):
    x, weight, _ = drawn((3, 20), torch.bfloat16, 1.0, 0)
    x[1, 7] = value
    args = (x, weight, EPS, 0.0, False)
    y, _ = in_each_set(lambda: rms_norm(*args))
    assert torch.equal(y.isnan(), reference.rms_norm(*args)[0].isnan())
    assert y[1].isnan().any()
    assert y[[0, 2]].isfinite().all()


def test_a_row_of_zeros_has_a_gradient():
    x, weight = torch.zeros(2, 8), torch.ones(8)
    y, rstd = rms_norm(x, weight, EPS, 0.0, False)
    dx = rms_norm_input_grad(torch.ones(2, 8), x, weight, rstd, 0.0)
    assert not y.any()
    torch.testing.assert_close(dx, torch.full((2, 8), EPS**-0.5))


def test_long_rows_lose_nothing(in_each_set, assert_within):
    x = torch.full((1, 200_001), 0.1)
    _, rstd = in_each_set(lambda: rms_norm(x, torch.ones(200_001), 0.0, 0.0, False))
    assert_within(rstd, x.double().square().mean(-1).rsqrt(), units=1)


def test_squares_beyond_float32(in_each_set):
    x = torch.full((2, 40), 1e25)
    args = (x, torch.ones(40), EPS, 0.0, False)
    y, rstd = in_each_set(lambda: rms_norm(*args))
    expected = reference.rms_norm(*args)
    assert torch.equal(y, expected[0])
    assert torch.equal(rstd, expected[1])
