"""Products in Triton's interpreter, against the reference within the rounding of its sums."""

import pytest
import torch

from ince.ops import QUANT_TYPES, reference
from ince.ops.triton import multiply
from ince.ops.triton.tuning import Settings

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (out, in, block size): rows and columns that fill no tile, blocks longer than a step, blocks
# across rows, rows that are no multiple of a group.
SHAPES = ((40, 96, 64), (33, 160, 32), (9, 1536, 512), (17, 2112, 4096), (7, 130, 64))


# A kernel is the same in tiles of any size, and the interpreter is quicker with these.
@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(multiply, "_FUSED", ((32, 64, 4, 2),))
    monkeypatch.setattr(multiply, "_GEMV", (Settings(1, 16, 1024, 4, 2),))


def packed_weight(shape, blocksize, quant_type="nf4", *, is_nested=False):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    packed, absmax = reference.quantize_4bit(weight, blocksize, quant_type, False)
    if is_nested:
        return packed, *reference.quantize_absmax(absmax)
    return packed, absmax, None, None


def exact(parts, blocksize, shape, dtype, quant_type="nf4"):
    rest = (blocksize, shape, dtype, quant_type)
    return reference.dequantize_4bit(*parts, *rest).double()


def assert_close(found, expected, dtype):
    """`expected` in float64, of a weight that was rounded to `dtype`."""
    assert found.dtype == dtype
    assert found.shape == expected.shape
    limit = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert float((found.double() - expected).abs().max()) <= limit * float(expected.abs().max())


@pytest.mark.parametrize("out_features, in_features, blocksize", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 19])
def test_products_are_those_of_the_reference(out_features, in_features, blocksize, dtype, num_rows):
    shape = (out_features, in_features)
    generator = torch.Generator().manual_seed(num_rows)
    for quant_type in QUANT_TYPES[: 1 if num_rows > 1 else 3]:
        is_nested = quant_type != "int4"
        parts = packed_weight(shape, blocksize, quant_type, is_nested=is_nested)
        x = torch.randn(num_rows, in_features, generator=generator).to(dtype)
        bias = torch.randn(out_features, generator=generator).to(dtype)
        weight = exact(parts, blocksize, shape, dtype, quant_type)
        rest = (blocksize, shape, quant_type)
        y = multiply.linear_4bit(x, *parts, bias, *rest)
        assert_close(y, x.double() @ weight.T + bias.double(), dtype)


@pytest.mark.parametrize("out_features, in_features, blocksize", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_reference(out_features, in_features, blocksize, dtype):
    shape = (out_features, in_features)
    parts = packed_weight(shape, blocksize, is_nested=True)
    grad = torch.randn(3, out_features, generator=torch.Generator().manual_seed(3)).to(dtype)
    weight = exact(parts, blocksize, shape, dtype)
    found = multiply.linear_4bit_input_grad(grad, *parts, blocksize, shape, "nf4")
    assert_close(found, grad.double() @ weight, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_row_goes_through_gemv_whatever_its_shape(dtype):
    shape, blocksize = (24, 96), 32
    parts = packed_weight(shape, blocksize)
    x = torch.randn(96, generator=torch.Generator().manual_seed(5)).to(dtype)
    weight = exact(parts, blocksize, shape, dtype)
    for dims in ((96,), (1, 96), (1, 1, 96)):
        y = multiply.gemv_4bit(x.view(dims), *parts, None, blocksize, shape, "nf4")
        assert_close(y, (weight @ x.double()).view(*dims[:-1], 24), dtype)


def test_a_row_that_begins_between_two_words_is_copied():
    shape, blocksize = (24, 96), 32
    parts = packed_weight(shape, blocksize)
    x = torch.randn(97, generator=torch.Generator().manual_seed(6)).bfloat16()[1:]
    assert x.data_ptr() % 4
    weight = exact(parts, blocksize, shape, torch.bfloat16)
    y = multiply.gemv_4bit(x, *parts, None, blocksize, shape, "nf4")
    assert_close(y, weight @ x.double(), torch.bfloat16)


def test_a_packed_weight_that_begins_between_two_words_is_copied():
    shape, blocksize = (24, 96), 32
    packed, *rest = packed_weight(shape, blocksize)
    odd = torch.cat([packed.new_zeros(1, 1), packed])[1:]
    assert odd.data_ptr() % 4
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(6)).half()
    args = (None, blocksize, shape, "nf4")
    found = multiply.linear_4bit(x, odd, *rest, *args)
    assert torch.equal(found, multiply.linear_4bit(x, packed, *rest, *args))


@pytest.mark.parametrize("dims", [(0, 64), (2, 0, 64), (2, 3, 64)])
def test_leading_dimensions_stay(dims):
    shape = (32, 64)
    parts = packed_weight(shape, 64)
    x = torch.randn(dims, generator=torch.Generator().manual_seed(7)).half()
    y = multiply.linear_4bit(x, *parts, None, 64, shape, "nf4")
    assert y.shape == (*dims[:-1], 32)
    assert multiply.linear_4bit_input_grad(y, *parts, 64, shape, "nf4").shape == dims


def test_many_rows_multiply_the_expanded_weight(monkeypatch):
    monkeypatch.setattr(multiply, "MAX_FUSED_ROWS", 4)
    shape = (32, 64)
    parts = packed_weight(shape, 64)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(8)).bfloat16()
    args = (None, 64, shape, "nf4")
    found = multiply.linear_4bit(x, *parts, *args)
    assert torch.equal(found, reference.linear_4bit(x, *parts, *args))
