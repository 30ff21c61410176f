"""Dense products of few rows on the CPU against float64, in each instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import cpu, dense_linear

PRECISION = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
INSTRUCTION_SETS = cpu.instruction_sets() or (None,)


@pytest.fixture(params=INSTRUCTION_SETS, autouse=True)
def instruction_set(request):
    before = cpu.use_instruction_set(request.param)
    yield
    cpu.use_instruction_set(before)


def drawn(rows, num_inputs, num_outputs, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, num_inputs), (num_outputs, num_inputs), (num_outputs,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def assert_is_the_product(x, weight, bias):
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    most = x.double().abs() @ weight.double().abs().T + 1
    found = dense_linear(x, weight, bias)
    assert found.dtype == x.dtype
    assert found.shape == exact.shape
    sums = 2.0**-23 * x.shape[-1] ** 0.5 * 4
    bound = most * sums + exact.abs() * PRECISION[x.dtype]
    assert bool(((found.double() - exact).abs() <= bound).all())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 110),
    st.sampled_from(list(PRECISION)),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_it_is_the_product_for_any_sizes(rows, num_inputs, num_outputs, dtype, has_bias, seed):
    x, weight, bias = drawn(rows, num_inputs, num_outputs, dtype, seed)
    assert_is_the_product(x, weight, bias if has_bias else None)


@pytest.mark.parametrize("dtype", list(PRECISION))
@pytest.mark.parametrize("rows, num_inputs, num_outputs", [(67, 2053, 51), (1, 1024, 7)])
def test_sums_longer_than_a_piece(rows, num_inputs, num_outputs, dtype):
    assert_is_the_product(*drawn(rows, num_inputs, num_outputs, dtype))


@pytest.mark.parametrize("dtype", list(PRECISION))
def test_a_row_does_not_depend_on_its_neighbors(dtype):
    x, weight, bias = drawn(71, 1100, 53, dtype)
    whole = dense_linear(x, weight, bias)
    for first, last in [(0, 1), (3, 5), (8, 15), (60, 71)]:
        assert torch.equal(dense_linear(x[first:last], weight, bias), whole[first:last])


def test_rows_and_weights_with_gaps():
    x, weight, bias = drawn(6, 20, 9, torch.float32)
    wide_x, wide_weight = torch.full((6, 25), torch.nan), torch.full((9, 31), torch.nan)
    wide_x[:, 2:22], wide_weight[:, 5:25] = x, weight
    found = dense_linear(wide_x[:, 2:22], wide_weight[:, 5:25], bias)
    assert torch.equal(found, dense_linear(x, weight, bias))
    # What does not lie along the sum, or repeats, goes the reference's way.
    assert_is_the_product(x.T.contiguous().T, weight.T.contiguous().T, bias[::2].repeat(2)[:9])


def test_shapes_are_those_of_a_linear_layer():
    x, weight, bias = drawn(6, 20, 9, torch.float32)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(dense_linear(x.view(2, 3, 20), weight, bias).view(6, 9), expected)
    assert dense_linear(x[0], weight).shape == (9,)
    assert dense_linear(x[:0], weight).shape == (0, 9)
    assert dense_linear(x, weight[:0]).shape == (6, 0)
    assert torch.equal(dense_linear(x[:, :0], weight[:, :0], bias), bias.expand(6, 9))
