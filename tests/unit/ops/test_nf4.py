"""What holds for NF4 whatever backend computes it: the layout, the error, the properties."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import BLOCKSIZES, NF4_CODE, dequantize_nf4, quantize_nf4

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_GAP = max(b - a for a, b in pairwise(NF4_CODE))

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


def weights(max_size=400):
    value = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)
    return st.lists(value, min_size=1, max_size=max_size).map(torch.tensor)


def codes(packed, num_weights):
    return torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten()[:num_weights]


def round_trip(weight, blocksize=64, dtype=None):
    packed, absmax = quantize_nf4(weight, blocksize)
    return dequantize_nf4(packed, absmax, blocksize, weight.shape, dtype or weight.dtype)


def test_the_first_weight_is_in_the_high_nibble():
    packed, absmax = quantize_nf4(torch.tensor([1.0, -1.0]))
    assert packed.tolist() == [[0xF0]]
    assert absmax.tolist() == [1.0]


def test_an_odd_last_nibble_holds_the_code_of_zero():
    assert quantize_nf4(torch.tensor([2.0]))[0].tolist() == [[0xF7]]


def test_a_zero_block_has_scale_zero_and_codes_of_zero():
    packed, absmax = quantize_nf4(torch.zeros(128))
    assert packed.unique().tolist() == [0x77]
    assert absmax.tolist() == [0.0, 0.0]
    assert not round_trip(torch.zeros(3, 50)).any()


def test_the_scale_of_a_short_zero_block_is_as_bitsandbytes_has_it():
    assert quantize_nf4(torch.zeros(70))[1].tolist() == torch.tensor([0.0, 1e-38]).tolist()


def test_a_weight_midway_takes_the_lower_value():
    code = torch.tensor(NF4_CODE)
    midway = (code[:-1] + code[1:]) / 2
    packed, _ = quantize_nf4(torch.cat([midway, torch.ones(1)]))
    assert codes(packed, 15).tolist() == list(range(15))
    above = torch.nextafter(midway, torch.ones(15))
    packed, _ = quantize_nf4(torch.cat([above, torch.ones(1)]))
    assert codes(packed, 15).tolist() == list(range(1, 16))


def test_blocks_are_flat_and_cross_rows():
    weight = torch.ones(4, 48)
    weight[1, 15] = 5.0  # the last weight of the first block
    weight[1, 16] = 7.0  # the first of the second
    assert quantize_nf4(weight)[1].tolist() == [5.0, 7.0, 1.0]


def test_a_view_is_read_in_row_major_order():
    weight = torch.randn(96, 64)
    for view in (weight.t(), weight[:, 1:], weight[::2]):
        for a, b in zip(quantize_nf4(view), quantize_nf4(view.contiguous()), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_of_the_code_survive_in_any_type(dtype):
    weight = torch.tensor([-4.0, 4.0, 0.0]).to(dtype)
    assert torch.equal(round_trip(weight), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_rounded_once(dtype):
    packed, absmax = quantize_nf4(torch.randn(1000))
    wide = dequantize_nf4(packed, absmax, 64, (1000,), torch.float32)
    assert torch.equal(dequantize_nf4(packed, absmax, 64, (1000,), dtype), wide.to(dtype))


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_the_error_on_normal_weights_is_the_known_one(blocksize):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    error = float((round_trip(weight, blocksize) - weight).abs().mean())
    mean, limit = ERRORS[blocksize]
    assert error < limit
    assert abs(error - mean) < limit - mean


@given(weights(), st.sampled_from(BLOCKSIZES[:3]))
def test_every_code_is_the_nearest(weight, blocksize):
    packed, absmax = quantize_nf4(weight, blocksize)
    scale = absmax.repeat_interleave(blocksize)[: weight.numel()].double().clamp(min=1e-38)
    distance = (weight.double()[:, None] / scale[:, None] - torch.tensor(NF4_CODE)).abs()
    chosen = distance.gather(1, codes(packed, weight.numel()).long()[:, None])[:, 0]
    assert bool((chosen <= distance.amin(1) + 1e-6).all())


@given(weights())
def test_the_error_is_at_most_half_the_widest_gap(weight):
    _, absmax = quantize_nf4(weight)
    scale = absmax.repeat_interleave(64)[: weight.numel()]
    error = (round_trip(weight) - weight).abs()
    assert bool((error <= scale * (WIDEST_GAP / 2 + 1e-6)).all())


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


@given(weights(), st.integers(-20, 20))
def test_a_power_of_two_moves_through(weight, exponent):
    weight[weight.abs() < 2.0**-60] = 0.0
    weight = torch.cat([weight, weight.new_ones(-weight.numel() % 64)])
    packed, absmax = quantize_nf4(weight)
    scaled_packed, scaled_absmax = quantize_nf4(weight * 2.0**exponent)
    assert torch.equal(scaled_packed, packed)
    assert torch.equal(scaled_absmax, absmax * 2.0**exponent)


@given(st.lists(weights(max_size=100), min_size=1, max_size=4))
def test_blocks_know_nothing_of_each_other(parts):
    parts = [torch.cat([part, part.new_ones(-part.numel() % 64)]) for part in parts]
    whole = quantize_nf4(torch.cat(parts))
    for a, b in zip(whole, zip(*map(quantize_nf4, parts), strict=True), strict=True):
        assert torch.equal(a, torch.cat(b))


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(0, 2**32), st.sampled_from(FLOATS))
def test_shapes_hold_for_any_number_of_weights(num_weights, seed, dtype):
    weight = torch.randn(num_weights, generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed, absmax = quantize_nf4(weight, 32)
    assert packed.shape == ((num_weights + 1) // 2, 1)
    assert absmax.shape == (-(-num_weights // 32),)
    assert round_trip(weight, 32).shape == weight.shape
