"""The CPU kernels pack and expand as the reference does, to the bit, in every instruction set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import QuantError
from ince.ops import BLOCKSIZES, QUANT_TYPES, cpu, quantize_absmax, reference
from ince.ops.cpu.four_bit import dequantize_4bit, quantize_4bit

BF16 = torch.bfloat16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

# Without a compiler there is none, and the reference is compared with itself.
INSTRUCTION_SETS = cpu.instruction_sets() or (None,)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_each_instruction_set():
    """The names, each in use while it is looked at."""
    before = cpu.use_instruction_set()
    try:
        for name in INSTRUCTION_SETS:
            cpu.use_instruction_set(name)
            yield name
    finally:
        cpu.use_instruction_set(before)


def same(actual, expected):
    """Equal to the bit, where NaN has many patterns that are as good."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    bits = BITS[expected.dtype]
    equal = actual.view(bits) == expected.view(bits)
    return bool((equal | (actual.isnan() & expected.isnan())).all())


def weights_of(kind, n, dtype):
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(n, generator=generator)
    if kind == "tiny":  # subnormal numbers, and scales below the least one
        weight *= 1e-38
    elif kind == "huge":
        weight = (weight * 1e38).nan_to_num().clamp(-3e38, 3e38)
    elif kind == "ties":
        weight = torch.randint(-8, 9, (n,), generator=generator) / 8
    elif kind == "zeros":
        weight = torch.where(weight > 0, 0.0, -0.0)
    elif kind == "outliers":
        weight = weight**5
    largest = torch.finfo(dtype).max
    return weight.clamp(-largest, largest).to(dtype)


def assert_packs_alike(weight, blocksize, quant_type="nf4", scale_search=False):
    args = (weight, blocksize, quant_type, scale_search)
    packed, absmax = reference.quantize_4bit(*args)
    for name in in_each_instruction_set():
        actual = quantize_4bit(*args)
        assert same(actual[0], packed), name
        assert same(actual[1], absmax), name
    return packed, absmax


def assert_expands_alike(packed, *rest):
    expected = reference.dequantize_4bit(packed, *rest)
    for name in in_each_instruction_set():
        assert same(dequantize_4bit(packed, *rest), expected), name


@pytest.mark.parametrize("scale_search", [False, True], ids=["absmax", "searched"])
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "tiny", "huge", "ties", "zeros", "outliers"])
def test_codes_and_scales_are_those_of_the_reference(kind, dtype, quant_type, scale_search):
    for blocksize, n in ((32, 1001), (64, 4096), (64, 4109), (256, 1500), (4096, 9001)):
        assert_packs_alike(weights_of(kind, n, dtype), blocksize, quant_type, scale_search)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_every_block_size(blocksize, dtype):
    for n in (1, 2, 31, 33, 4097, 20_001):
        packed, absmax = assert_packs_alike(weights_of("normal", n, dtype), blocksize)
        for result in DTYPES:
            assert_expands_alike(packed, absmax, None, None, blocksize, (n,), result, "nf4")


def test_work_is_divided_over_threads(threads):
    n = 500_001
    packed, absmax = assert_packs_alike(weights_of("normal", n, torch.bfloat16), 64)
    assert_expands_alike(packed, absmax, None, None, 64, (n,), BF16, "nf4")
    codes, nested, offset = quantize_absmax(absmax)
    assert_expands_alike(packed, codes, nested, offset, 64, (n,), BF16, "nf4")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_sixteen_bits(dtype):
    weight = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    weight = weight[weight.isfinite()]
    assert_packs_alike(weight, 64)
    shuffled = weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))]
    assert_packs_alike(shuffled, 32, "fp4")
    assert_packs_alike(shuffled, 64, "nf4", scale_search=True)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_scale_expands_as_in_the_reference(dtype, quant_type):
    """Scales of any bits: negative, subnormal, infinite, NaN, and products that overflow."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2048,), generator=generator)
    absmax = bits.to(torch.int32).view(torch.float32)
    packed = torch.randint(0, 256, (2048 * 32, 1), dtype=torch.uint8, generator=generator)
    assert_expands_alike(packed, absmax, None, None, 64, (2048 * 64,), dtype, quant_type)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_in_eight_bits_are_decoded_on_the_way(dtype):
    for n, blocksize in ((65, 64), (70_001, 64), (20_000, 32), (9000, 4096)):
        weight = weights_of("normal", n, torch.float32)
        packed, absmax = reference.quantize_4bit(weight, blocksize, "nf4", False)
        codes, nested, offset = quantize_absmax(absmax)
        assert_expands_alike(packed, codes, nested, offset, blocksize, (n,), dtype, "nf4")


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    repeats=st.integers(1, 40),
    blocksize=st.sampled_from((32, 64, 4096)),
    quant_type=st.sampled_from(QUANT_TYPES),
    scale_search=st.booleans(),
)
def test_any_finite_numbers(values, repeats, blocksize, quant_type, scale_search):
    weight = torch.tensor(values, dtype=torch.float32).repeat(repeats)
    packed, absmax = assert_packs_alike(weight, blocksize, quant_type, scale_search)
    for dtype in DTYPES:
        args = (packed, absmax, None, None, blocksize, weight.shape, dtype, quant_type)
        assert_expands_alike(*args)


def test_tensors_that_do_not_lie_in_one_piece():
    weight = weights_of("normal", 96 * 130, torch.float32).view(96, 130)
    for view in (weight.T, weight[:, ::2], weight[1:, 3:], weight[:1].expand(9, 130)):
        packed, absmax = assert_packs_alike(view, 64)
        far = torch.stack([packed, packed], dim=1)[:, 0]
        scales = torch.stack([absmax, absmax], dim=1)[:, 0]
        assert_expands_alike(far, scales, None, None, 64, view.shape, torch.bfloat16, "nf4")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [0, 70, 130])
def test_weights_that_are_not_finite_are_counted_as_in_the_reference(at, dtype, value):
    weight = torch.ones(131, dtype=dtype)
    weight[at] = value
    with pytest.raises(QuantError) as expected:
        reference.quantize_4bit(weight, 64, "nf4", False)
    for _ in in_each_instruction_set():
        with pytest.raises(QuantError) as actual:
            quantize_4bit(weight, 64, "nf4", False)
        assert str(actual.value) == str(expected.value)


def test_a_tensor_for_which_large_pages_are_asked():
    n = (1 << 24) + 4096 * 3 - 5
    packed = torch.arange((n + 1) // 2).to(torch.uint8)
    absmax = torch.rand(-(-n // 4096), generator=torch.Generator().manual_seed(0))
    expected = reference.dequantize_4bit(packed, absmax, None, None, 4096, (n,), BF16, "nf4")
    actual = dequantize_4bit(packed, absmax, None, None, 4096, (n,), BF16, "nf4")
    assert same(actual, expected)
