"""The CPU kernels multiply as the expanded weight does, up to the order of sums."""

import pytest
import torch
from torch.nn import functional as F

from ince.ops import cpu, gemv_4bit, linear_4bit, reference
from ince.ops.cpu import linear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISION = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# Without a compiler there is none, and the reference is compared with itself.
INSTRUCTION_SETS = cpu.instruction_sets() or (None,)


def in_each_instruction_set():
    """The names, each in use while it is looked at."""
    before = cpu.use_instruction_set()
    try:
        for name in INSTRUCTION_SETS:
            cpu.use_instruction_set(name)
            yield name
    finally:
        cpu.use_instruction_set(before)


def packed_of(shape, blocksize, *, nested=False, quant_type="nf4"):
    """Arguments of the operators, after x."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, absmax = reference.quantize_4bit(weight, blocksize, quant_type, False)
    if not nested:
        return packed, absmax, None, None
    return packed, *reference.quantize_absmax(absmax)


def assert_close(actual, left, right, bias=None):
    """Within rounding of ``left @ right (+ bias)`` in `left`'s dtype, element by element.

    Rounding of the result, of the sum's terms (some kernels do not round the weights to 16 bits,
    which is one rounding of each term), and of float32 sums, in whatever order.
    """
    exact = left.double() @ right.double()
    terms = (left.double() ** 2 @ right.double() ** 2).sqrt()
    if bias is not None:
        exact += bias
    allowed = PRECISION[left.dtype] * (exact.abs() + 8 * terms)
    allowed += PRECISION[torch.float32] * 2 * left.shape[-1] ** 0.5 * terms
    assert actual.dtype == left.dtype
    assert actual.shape == exact.shape
    worst = ((actual.double() - exact).abs() - allowed).max()
    assert worst <= 0


def assert_multiplies(x, parts, bias, blocksize, shape, quant_type="nf4"):
    weight = reference.dequantize_4bit(*parts, blocksize, shape, x.dtype, quant_type)
    for _ in in_each_instruction_set():
        y = linear.linear_4bit(x, *parts, bias, blocksize, shape, quant_type)
        assert_close(y, x, weight.T, bias)


@pytest.mark.parametrize("nested", [False, True], ids=["scales", "double"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 64), (7, 192), (33, 320), (130, 576), (5, 4160), (3, 8256)], ids=str
)
def test_rows_of_any_number(shape, dtype, nested):
    for blocksize in (32, 64, 4096):
        parts = packed_of(shape, blocksize, nested=nested)
        for num_rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 65, 130):
            x = torch.randn(num_rows, shape[1]).to(dtype)
            bias = torch.randn(shape[0]).to(dtype) if num_rows % 2 else None
            assert_multiplies(x, parts, bias, blocksize, shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quant_type", ["fp4", "int4"])
def test_other_codes(dtype, quant_type):
    parts = packed_of((50, 128), 64, quant_type=quant_type)
    for num_rows in (1, 12):
        x = torch.randn(num_rows, 128).to(dtype)
        assert_multiplies(x, parts, None, 64, (50, 128), quant_type)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9, 33), (5, 96), (3, 1), (1, 31), (40, 100), (2, 4097)])
def test_blocks_that_cross_rows(shape, dtype):
    for blocksize in (32, 64, 4096):
        parts = packed_of(shape, blocksize)
        for num_rows in (1, 20):
            x = torch.randn(num_rows, shape[1]).to(dtype)
            assert_multiplies(x, parts, None, blocksize, shape)


@pytest.mark.parametrize("num_rows", [1, 8, 33])
def test_threads_do_not_change_the_result(num_rows):
    parts = packed_of((515, 1024), 64)
    before = torch.get_num_threads()
    x = torch.randn(num_rows, 1024).bfloat16()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(linear.linear_4bit(x, *parts, None, 64, (515, 1024), "nf4"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_a_row_does_not_depend_on_its_neighbors():
    parts = packed_of((70, 256), 64)
    x = torch.randn(40, 256)
    for _ in in_each_instruction_set():
        for dtype in (torch.float32, torch.bfloat16):
            whole = linear.linear_4bit(x.to(dtype), *parts, None, 64, (70, 256), "nf4")
            alone = linear.linear_4bit(x[:20].to(dtype), *parts, None, 64, (70, 256), "nf4")
            torch.testing.assert_close(whole[:20], alone)


def test_inputs_that_do_not_lie_in_one_piece():
    parts = packed_of((48, 128), 64)
    bias = torch.randn(96)[::2]
    for x in (
        torch.randn(128, 3).T,
        torch.randn(3, 256)[:, ::2],
        torch.randn(1, 128).expand(3, 128),
    ):
        assert_multiplies(x, parts, bias, 64, (48, 128))
        assert_multiplies(x.bfloat16(), parts, bias.bfloat16(), 64, (48, 128))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (4, 0), (1, 1, 1)], ids=str)
def test_axes_before_the_last(lead, dtype):
    parts = packed_of((16, 64), 64)
    x = torch.randn(*lead, 64).to(dtype)
    for _ in in_each_instruction_set():
        y = linear.linear_4bit(x, *parts, None, 64, (16, 64), "nf4")
        assert y.shape == (*lead, 16)
        back = linear.linear_4bit_input_grad(y, *parts, 64, (16, 64), "nf4")
        assert back.shape == x.shape


@pytest.mark.parametrize("nested", [False, True], ids=["scales", "double"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 256), (40, 100), (64, 4096)], ids=str)
def test_large_weights_are_expanded_in_slabs(shape, dtype, nested, monkeypatch):
    parts = packed_of(shape, 64, nested=nested)
    weight = reference.dequantize_4bit(*parts, 64, shape, dtype, "nf4")
    x = torch.randn(2, 70, shape[1]).to(dtype)
    grad = torch.randn(2, 70, shape[0]).to(dtype)
    bias = torch.randn(shape[0]).to(dtype)
    monkeypatch.setattr(linear, "_MAX_ROWS", 0)
    for slab_bytes in (1, 20_000, 100_000):
        monkeypatch.setattr(linear, "_SLAB_BYTES", slab_bytes)
        assert_multiplies(x, parts, bias, 64, shape)
        for _ in in_each_instruction_set():
            back = linear.linear_4bit_input_grad(grad, *parts, 64, shape, "nf4")
            assert_close(back, grad, weight)


@pytest.mark.parametrize(
    ("num_rows", "product"), [(1, gemv_4bit), (1, linear_4bit), (40, linear_4bit)]
)
def test_gradients_are_those_of_the_expanded_weight(num_rows, product):
    packed, codes, nested, offset = packed_of((48, 128), 64, nested=True)
    weight = reference.dequantize_4bit(
        packed, codes, nested, offset, 64, (48, 128), torch.bfloat16, "nf4"
    )
    scales = {"nested_absmax": nested, "nested_offset": offset}
    for _ in in_each_instruction_set():
        x = torch.randn(num_rows, 128).bfloat16().requires_grad_()
        bias = torch.randn(48).bfloat16().requires_grad_()
        y = product(x, packed, codes, 64, (48, 128), **scales, bias=bias)
        grad = torch.randn_like(y)
        y.backward(grad)
        assert_close(x.grad, grad, weight)
        torch.testing.assert_close(bias.grad, grad.sum(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("num_rows", [1, 16])
def test_numbers_that_are_none_come_through(num_rows, value):
    parts = packed_of((16, 64), 64)
    weight = reference.dequantize_4bit(*parts, 64, (16, 64), torch.bfloat16, "nf4")
    x = torch.ones(num_rows, 64).bfloat16()
    x[0, 5] = value
    expected = F.linear(x, weight).isfinite()
    for _ in in_each_instruction_set():
        y = linear.linear_4bit(x, *parts, None, 64, (16, 64), "nf4")
        assert torch.equal(y.isfinite(), expected)
