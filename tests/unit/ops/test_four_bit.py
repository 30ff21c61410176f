"""What holds for four bits whatever backend computes them: layout, error, properties."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import QuantError
from ince.ops import (
    BLOCKSIZES,
    NF4_CODE,
    QUANT_TYPES,
    code_of,
    dequantize_4bit,
    dequantize_absmax,
    quantize_4bit,
    quantize_absmax,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_GAP = {
    name: max(b - a for a, b in pairwise(sorted(code_of(name).tolist()))) for name in QUANT_TYPES
}
ZERO_CODE = {"nf4": 7, "fp4": 0, "int4": 7}

# Mean absolute error of a 1024 x 1024 round trip on N(0, 1), and its limit at seven deviations.
ERRORS = {
    32: (0.067746, 0.068229),
    64: (0.072798, 0.073316),
    128: (0.076831, 0.077468),
    256: (0.080337, 0.081051),
    512: (0.083547, 0.084548),
    1024: (0.086610, 0.087919),
    2048: (0.089592, 0.091349),
    4096: (0.092547, 0.095067),
}

# Mean squared error on N(0, 1) at block 64, scales in 8 bits.
MEAN_SQUARES = [
    ("nf4", False, 0.00846),
    ("nf4", True, 0.00726),
    ("fp4", False, 0.01487),
    ("fp4", True, 0.01270),
    ("int4", False, 0.01160),
    ("int4", True, 0.00993),
]


def weights(max_size=400):
    value = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)
    return st.lists(value, min_size=1, max_size=max_size).map(torch.tensor)


def codes(packed, num_weights):
    return torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten()[:num_weights]


def round_trip(weight, blocksize=64, dtype=None, quant_type="nf4", *, scale_search=False):
    parts = quantize_4bit(weight, blocksize, quant_type, scale_search=scale_search)
    return dequantize_4bit(*parts, blocksize, weight.shape, dtype or weight.dtype, quant_type)


def test_the_first_weight_is_in_the_high_nibble():
    packed, absmax = quantize_4bit(torch.tensor([1.0, -1.0]))
    assert packed.tolist() == [[0xF0]]
    assert absmax.tolist() == [1.0]


@pytest.mark.parametrize(("quant_type", "byte"), [("nf4", 0xF7), ("fp4", 0x30), ("int4", 0xE7)])
def test_an_odd_last_nibble_holds_the_code_of_zero(quant_type, byte):
    assert quantize_4bit(torch.tensor([2.0]), 64, quant_type)[0].tolist() == [[byte]]


@pytest.mark.parametrize("scale_search", [False, True])
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_a_zero_block_has_scale_zero_and_codes_of_zero(quant_type, scale_search):
    packed, absmax = quantize_4bit(torch.zeros(128), 64, quant_type, scale_search=scale_search)
    assert packed.unique().tolist() == [ZERO_CODE[quant_type] * 17]
    assert absmax.tolist() == [0.0, 0.0]
    zeros = torch.zeros(3, 50)
    assert not round_trip(zeros, 64, None, quant_type, scale_search=scale_search).any()


def test_the_scale_of_a_short_zero_block_is_as_bitsandbytes_has_it():
    assert quantize_4bit(torch.zeros(70))[1].tolist() == torch.tensor([0.0, 1e-38]).tolist()


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_a_weight_midway_takes_the_lower_value(quant_type):
    values = code_of(quant_type).unique()
    midway = (values[:-1] + values[1:]) / 2
    for weight, expected in (
        (midway, values[:-1]),
        (torch.nextafter(midway, torch.ones(1)), values[1:]),
    ):
        # The full block of scale 1 leaves its weights as they are.
        block = torch.cat([weight, torch.ones(64 - len(weight))])
        assert torch.equal(round_trip(block, quant_type=quant_type)[: len(weight)], expected)


def test_codes_of_nf4_ascend_with_their_values():
    block = torch.cat([torch.tensor(NF4_CODE), torch.ones(48)])
    assert codes(quantize_4bit(block)[0], 16).tolist() == list(range(16))


def test_int4_never_writes_its_sixteenth_code():
    weight = torch.randn(4096)
    for scale_search in (False, True):
        packed, _ = quantize_4bit(weight, 64, "int4", scale_search=scale_search)
        assert codes(packed, 4096).unique().tolist() == list(range(15))


def test_fp4_has_zero_with_a_sign_and_no_negative_zero():
    packed = torch.tensor([[0x80]], dtype=torch.uint8)
    zeros = dequantize_4bit(packed, torch.ones(1), 64, (2,), quant_type="fp4")
    assert zeros.tolist() == [0.0, 0.0]
    assert not zeros.signbit().any()


def test_blocks_are_flat_and_cross_rows():
    weight = torch.ones(4, 48)
    weight[1, 15] = 5.0  # the last weight of the first block
    weight[1, 16] = 7.0  # the first of the second
    assert quantize_4bit(weight)[1].tolist() == [5.0, 7.0, 1.0]


def test_a_view_is_read_in_row_major_order():
    weight = torch.randn(96, 64)
    for view in (weight.t(), weight[:, 1:], weight[::2]):
        for a, b in zip(quantize_4bit(view), quantize_4bit(view.contiguous()), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_of_the_code_survive_in_any_type(dtype):
    weight = torch.tensor([-4.0, 4.0, 0.0]).to(dtype)
    assert torch.equal(round_trip(weight), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_rounded_once(dtype):
    packed, absmax = quantize_4bit(torch.randn(1000))
    wide = dequantize_4bit(packed, absmax, 64, (1000,), torch.float32)
    assert torch.equal(dequantize_4bit(packed, absmax, 64, (1000,), dtype), wide.to(dtype))


@pytest.mark.parametrize(("quant_type", "scale_search", "expected"), MEAN_SQUARES)
def test_the_mean_square_on_normal_weights_is_the_known_one(quant_type, scale_search, expected):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    packed, absmax = quantize_4bit(weight, 64, quant_type, scale_search=scale_search)
    absmax = dequantize_absmax(*quantize_absmax(absmax))
    restored = dequantize_4bit(packed, absmax, 64, weight.shape, quant_type=quant_type)
    assert float((restored - weight).square().mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_the_error_on_normal_weights_is_the_known_one(blocksize):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    error = float((round_trip(weight, blocksize) - weight).abs().mean())
    mean, limit = ERRORS[blocksize]
    assert error < limit
    assert abs(error - mean) < limit - mean


@given(weights(), st.sampled_from(BLOCKSIZES[:3]), st.sampled_from(QUANT_TYPES), st.booleans())
def test_every_code_is_the_nearest(weight, blocksize, quant_type, scale_search):
    packed, absmax = quantize_4bit(weight, blocksize, quant_type, scale_search=scale_search)
    scale = absmax.repeat_interleave(blocksize)[: weight.numel()].double().clamp(min=1e-38)
    values = code_of(quant_type)
    normalized = (weight.double() / scale).clamp(-1, 1)
    distance = (normalized[:, None] - values).abs()
    chosen = distance.gather(1, codes(packed, weight.numel()).long()[:, None])[:, 0]
    assert bool((chosen <= distance.amin(1) + 1e-6).all())


@given(weights(), st.sampled_from(QUANT_TYPES))
def test_the_error_is_at_most_half_the_widest_gap(weight, quant_type):
    _, absmax = quantize_4bit(weight, 64, quant_type)
    scale = absmax.repeat_interleave(64)[: weight.numel()]
    error = (round_trip(weight, quant_type=quant_type) - weight).abs()
    assert bool((error <= scale * (WIDEST_GAP[quant_type] / 2 + 1e-6)).all())


@given(weights(), st.sampled_from([32, 64, 256]), st.sampled_from(QUANT_TYPES))
def test_a_searched_scale_is_positive_and_never_worse(weight, blocksize, quant_type):
    absmax = quantize_4bit(weight, blocksize, quant_type)[1]
    searched = quantize_4bit(weight, blocksize, quant_type, scale_search=True)[1]
    assert torch.equal(searched > 0, absmax > 0)
    plain_error, searched_error = (
        [
            error.square().sum()
            for error in (
                round_trip(weight, blocksize, None, quant_type, scale_search=is_searched).double()
                - weight
            ).split(blocksize)
        ]
        for is_searched in (False, True)
    )
    # Rounding of the sums, of numbers as large as the squares of the weights.
    slack = 1e-5 * blocksize * absmax.double().square()
    assert bool((torch.stack(searched_error) <= torch.stack(plain_error) + slack).all())


@given(weights())
def test_zero_and_the_largest_of_a_block_are_exact(weight):
    weight[0] = 0.0
    restored = round_trip(weight)
    assert not restored[weight == 0].any()
    for block, again in zip(weight.split(64), restored.split(64), strict=True):
        largest = block.abs().argmax()
        assert again[largest] == block[largest]


@given(weights())
def test_a_round_trip_changes_nothing_the_second_time(weight):
    # Below this the scales themselves lose bits.
    weight[weight.abs() < 2.0**-60] = 0.0
    once = round_trip(weight)
    assert torch.equal(round_trip(once), once)


@given(weights(), st.integers(-20, 20), st.booleans())
def test_a_power_of_two_moves_through(weight, exponent, scale_search):
    weight[weight.abs() < 2.0**-60] = 0.0
    weight = torch.cat([weight, weight.new_ones(-weight.numel() % 64)])
    packed, absmax = quantize_4bit(weight, scale_search=scale_search)
    moved = quantize_4bit(weight * 2.0**exponent, scale_search=scale_search)
    assert torch.equal(moved[0], packed)
    assert torch.equal(moved[1], absmax * 2.0**exponent)


@pytest.mark.parametrize("scale_search", [False, True])
@pytest.mark.parametrize("quant_type", ["fp4", "int4"])
def test_symmetric_formats_mirror(quant_type, scale_search):
    weight = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    there = round_trip(weight, quant_type=quant_type, scale_search=scale_search)
    assert torch.equal(
        round_trip(-weight, quant_type=quant_type, scale_search=scale_search), -there
    )


@given(st.lists(weights(max_size=100), min_size=1, max_size=4), st.booleans())
def test_blocks_know_nothing_of_each_other(parts, scale_search):
    parts = [torch.cat([part, part.new_ones(-part.numel() % 64)]) for part in parts]
    whole = quantize_4bit(torch.cat(parts), scale_search=scale_search)
    each = [quantize_4bit(part, scale_search=scale_search) for part in parts]
    for a, b in zip(whole, zip(*each, strict=True), strict=True):
        assert torch.equal(a, torch.cat(b))


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(0, 2**32),
    st.sampled_from(FLOATS),
    st.sampled_from(QUANT_TYPES),
    st.booleans(),
)
def test_shapes_hold_for_any_number_of_weights(num_weights, seed, dtype, quant_type, search):
    weight = torch.randn(num_weights, generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed, absmax = quantize_4bit(weight, 32, quant_type, scale_search=search)
    assert packed.shape == ((num_weights + 1) // 2, 1)
    assert absmax.shape == (-(-num_weights // 32),)
    assert absmax.dtype == torch.float32
    assert round_trip(weight, 32, None, quant_type, scale_search=search).shape == weight.shape


@pytest.mark.parametrize("scale_search", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_counted(bad, scale_search):
    weight = torch.randn(5, 100)
    weight[3, 17] = bad
    with pytest.raises(QuantError, match="1 of 500 weights are not finite"):
        quantize_4bit(weight, scale_search=scale_search)


def test_scales_in_8_bits_expand_as_by_hand():
    weight = torch.randn(300, 100, generator=torch.Generator().manual_seed(0))
    packed, absmax = quantize_4bit(weight)
    codes_, nested_absmax, offset = quantize_absmax(absmax)
    by_hand = dequantize_absmax(codes_, nested_absmax, offset)
    assert torch.equal(
        dequantize_4bit(
            packed, codes_, 64, weight.shape, nested_absmax=nested_absmax, nested_offset=offset
        ),
        dequantize_4bit(packed, by_hand, 64, weight.shape),
    )


@pytest.mark.parametrize(
    ("weight", "blocksize", "quant_type", "what"),
    [
        (torch.ones(8, dtype=torch.float64), 64, "nf4", "only float weights"),
        (torch.ones(8, dtype=torch.int8), 64, "nf4", "only float weights"),
        (torch.ones(0), 64, "nf4", "an empty tensor"),
        (torch.ones(8), 48, "nf4", "no such block size"),
        (torch.ones(8), 64, "nf5", "no such 4-bit format"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight, blocksize, quant_type, what):
    with pytest.raises(QuantError, match=what):
        quantize_4bit(weight, blocksize, quant_type)


PARTS = {
    "packed": torch.zeros(50, 1, dtype=torch.uint8),
    "absmax": torch.ones(2),
    "blocksize": 64,
    "shape": (10, 10),
}
NESTED = {
    "absmax": torch.zeros(2, dtype=torch.uint8),
    "nested_absmax": torch.ones(1),
    "nested_offset": torch.ones(()),
}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"packed": PARTS["packed"].char()}, "packed has the wrong type"),
        ({"packed": PARTS["packed"][1:]}, "packed has the wrong length"),
        ({"absmax": torch.ones(3)}, "absmax has the wrong length"),
        ({"absmax": torch.ones(2).half()}, "absmax has the wrong type"),
        ({"absmax": NESTED["absmax"]}, "absmax has the wrong type"),
        ({"shape": (10, -10)}, "not the shape"),
        ({"shape": (0, 10)}, "not the shape"),
        ({"shape": (10, 11)}, "wrong length"),
        ({"blocksize": 0}, "no such block size"),
        ({"quant_type": "nf"}, "no such 4-bit format"),
        ({"dtype": torch.float64}, "cannot be expanded"),
        (NESTED | {"absmax": torch.ones(2)}, "absmax has the wrong type"),
        (NESTED | {"nested_absmax": None}, "nested_absmax is missing"),
        (NESTED | {"nested_offset": None}, "nested_offset is missing"),
        (NESTED | {"nested_absmax": torch.ones(2)}, "nested_absmax has the wrong length"),
        (NESTED | {"nested_offset": torch.ones(2)}, "nested_offset has the wrong length"),
        (NESTED | {"nested_offset": torch.ones(1).half()}, "nested_offset has the wrong type"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(changes, what):
    assert dequantize_4bit(**PARTS).shape == (10, 10)
    assert dequantize_4bit(**PARTS | NESTED).shape == (10, 10)
    with pytest.raises(QuantError, match=what):
        dequantize_4bit(**PARTS | changes)
