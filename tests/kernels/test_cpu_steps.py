"""Optimizer steps and 8-bit state on the CPU, equal to the reference to the bit in each set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import QuantError
from ince.ops import dynamic_map, dynamic_thresholds, reference
from ince.ops.cpu.eight_bit import dequantize_8bit, quantize_8bit
from ince.ops.cpu.steps import adamw_8bit_step_, adamw_step_, lion_8bit_step_, lion_step_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = st.one_of(st.integers(0, 70), st.sampled_from((255, 256, 257, 1000, 16_383, 40_000)))


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def many_magnitudes(n, seed=0):
    """Numbers over twelve decades, both signs, zeros among them."""
    values = draw(n, seed=seed) * 10 ** (draw(n, seed=seed + 1) * 3)
    return values.where(draw(n, seed=seed + 2) > -1.5, 0.0)


def same(found, expected, *, signs_of_zeros=True):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.isnan(), other.isnan())
        one, other = one.nan_to_num(7), other.nan_to_num(7)
        assert torch.equal(one, other)
        assert not signs_of_zeros or torch.equal(one.signbit(), other.signbit())


@given(n=SIZES, signed=st.booleans(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_codes_are_those_of_the_reference(in_each_set, n, signed, dtype, seed):
    values = many_magnitudes(n, seed).to(dtype).nan_to_num()
    found = in_each_set(lambda: quantize_8bit(values, signed))
    same(found, reference.quantize_8bit(values, signed))
    codes, absmax = found
    (expanded,) = in_each_set(lambda: (dequantize_8bit(codes, absmax, signed),))
    same((expanded,), (reference.dequantize_8bit(codes, absmax, signed),))


@pytest.mark.parametrize("signed", [True, False])
def test_every_value_and_every_threshold_is_told_apart(in_each_set, signed):
    values, thresholds = dynamic_map(signed=signed), dynamic_thresholds(signed=signed)
    points = torch.cat([values, thresholds, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-45])])
    beside = [torch.nextafter(points, torch.tensor(side)) for side in (-2.0, 2.0)]
    points = torch.cat([points, *beside]).clamp(-1, 1)
    blocks = torch.nn.functional.pad(points, (0, -len(points) % 255)).view(-1, 255)
    blocks = torch.nn.functional.pad(blocks, (0, 1), value=1.0).contiguous()
    for scale in (1.0, 2.0**-100, 2.0**100):
        scaled = blocks * scale
        codes, absmax = in_each_set(lambda scaled=scaled: quantize_8bit(scaled, signed))
        assert bool((absmax == scale).all())
        same((codes, absmax), reference.quantize_8bit(scaled, signed))


def test_between_neighboring_upper_bits_lies_at_most_one_threshold():
    # What the lookup rests on: a rank and one comparison.
    upper = torch.arange((127 - 24) << 7, (127 << 7) + 1, dtype=torch.int32)
    for signed in (True, False):
        thresholds = dynamic_thresholds(signed=signed)
        for sign in (1, -1):
            ends = [((upper << 16) | bits).view(torch.float32) for bits in (0, 0xFFFF)]
            ends[0][0] = 0.0  # what is smaller is looked up here too
            least, most = sorted((sign * end for end in ends), key=lambda end: float(end.sum()))
            num_below = [torch.bucketize(end, thresholds) for end in (least, most)]
            assert int((num_below[1] - num_below[0]).max()) <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    values = torch.ones(70_000)
    values[65_000] = bad
    with pytest.raises(QuantError, match="1 of 70000 are not finite"):
        quantize_8bit(values, True)


cases = {
    "n": SIZES,
    "dtype": st.sampled_from(DTYPES),
    "wide": st.booleans(),
    "beta1": st.sampled_from((0.9, 0.0, 0.4, 0.95)),
    "decay": st.sampled_from((0.0, 0.1)),
    "count": st.sampled_from((1, 2, 100_000)),
    "seed": st.integers(0, 99),
}


def inputs(n, dtype, wide, seed):
    parameter = draw(n, seed=seed).to(dtype)
    gradient = many_magnitudes(n, seed + 10) * 1e-3
    return parameter, gradient if wide else gradient.to(dtype).nan_to_num()


@given(**cases)
@settings(max_examples=20)
def test_float32_steps_are_those_of_the_reference(
    in_each_set, n, dtype, wide, beta1, decay, count, seed
):
    parameter, gradient = inputs(n, dtype, wide, seed)
    first, second = draw(n, seed=seed + 20), draw(n, seed=seed + 21).square()
    adamw = (count, 1e-3, beta1, 0.999, 1e-8, decay)
    lion = (1e-3, beta1, 0.99, decay)

    def results(adamw_step, lion_step):
        tensors = [each.clone() for each in (parameter, first, second, parameter, first)]
        adamw_step(tensors[0], gradient, tensors[1], tensors[2], *adamw)
        lion_step(tensors[3], gradient, tensors[4], *lion)
        return tensors

    found = in_each_set(lambda: results(adamw_step_, lion_step_))
    # From the farther end, torch.lerp gives a zero another sign at the end of a tensor.
    expected = results(reference.adamw_step_, reference.lion_step_)
    same(found, expected, signs_of_zeros=beta1 > 0.5)


@given(**cases)
@settings(max_examples=20)
def test_8bit_steps_are_those_of_the_reference(
    in_each_set, n, dtype, wide, beta1, decay, count, seed
):
    parameter, gradient = inputs(n, dtype, wide, seed)
    first = reference.quantize_8bit(many_magnitudes(n, seed + 20), True)
    second = reference.quantize_8bit(many_magnitudes(n, seed + 21).square(), False)
    adamw = (count, 1e-3, beta1, 0.999, 1e-8, decay)
    lion = (1e-3, beta1, 0.99, decay)

    def results(adamw_step, lion_step):
        state = [each.clone() for each in (first[0], second[0], first[1], second[1])]
        again = [each.clone() for each in first]
        moved = [parameter.clone() for _ in range(2)]
        adamw_step(moved[0], gradient, *state, *adamw)
        lion_step(moved[1], gradient, *again, *lion)
        return [*moved, *state, *again]

    found = in_each_set(lambda: results(adamw_8bit_step_, lion_8bit_step_))
    expected = results(reference.adamw_8bit_step_, reference.lion_8bit_step_)
    same(found, expected, signs_of_zeros=beta1 > 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_kept_as_the_reference_keeps_it(in_each_set, dtype):
    n = 700
    gradient = draw(n).to(dtype)
    gradient[[3, 300, 301]] = torch.tensor([math.nan, math.inf, -math.inf]).to(dtype)
    parameter = draw(n, seed=1).to(dtype)
    first = reference.quantize_8bit(draw(n, seed=2), True)
    second = reference.quantize_8bit(draw(n, seed=3).square(), False)

    def results(adamw_step, adamw_8bit_step, lion_step, lion_8bit_step):
        moved = [parameter.clone() for _ in range(4)]
        moments = [torch.zeros(n) for _ in range(3)]
        state = [each.clone() for each in (first[0], second[0], first[1], second[1], *first)]
        adamw_step(moved[0], gradient, *moments[:2], 1, 1e-3, 0.9, 0.999, 1e-8, 0.1)
        adamw_8bit_step(moved[1], gradient, *state[:4], 1, 1e-3, 0.9, 0.999, 1e-8, 0.1)
        lion_step(moved[2], gradient, moments[2], 1e-3, 0.9, 0.99, 0.1)
        lion_8bit_step(moved[3], gradient, *state[4:], 1e-3, 0.9, 0.99, 0.1)
        return [*moved, *moments, *state]

    ours = (adamw_step_, adamw_8bit_step_, lion_step_, lion_8bit_step_)
    found = in_each_set(lambda: results(*ours))
    theirs = [getattr(reference, function.__name__) for function in ours]
    same(found, results(*theirs))
    # A block that holds such a number is not one from then on; the others are.
    assert found[9].isnan().tolist() == [True, True, False]
    assert all(bool(each[3].isnan()) for each in found[:4])


def test_tensors_with_gaps_are_written_where_they_are(in_each_set):
    n = 40
    whole = [draw(n, n, seed=seed) for seed in range(4)]
    whole[3].square_()

    def results(of):
        tensors = [of(each.clone()) for each in whole]
        adamw_step_(*tensors, 3, 1e-2, 0.9, 0.999, 1e-8, 0.1)
        return [each.contiguous() for each in tensors]

    found = in_each_set(lambda: results(lambda each: each[:, ::2].T))
    expected = [each[:, ::2].T.contiguous() for each in whole]
    reference.adamw_step_(*expected, 3, 1e-2, 0.9, 0.999, 1e-8, 0.1)
    same(found, expected)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_float32_is_torch_to_the_bit(in_each_set, count):
    # Whatever the place in a register: sizes beside multiples of it.
    for n in (1, 15, 1031):
        parameter, gradient = draw(n), many_magnitudes(n, 5) * 1e-3
        first, second = draw(n, seed=2), draw(n, seed=3).square()
        theirs = torch.nn.Parameter(parameter.clone())
        theirs.grad = gradient
        options = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}
        optimizer = torch.optim.AdamW([theirs], foreach=False, **options)
        step = torch.tensor(float(count - 1))
        optimizer.state[theirs] = {
            "step": step, "exp_avg": first.clone(), "exp_avg_sq": second.clone()
        }  # fmt: skip
        optimizer.step()

        def results(parameter=parameter, gradient=gradient, first=first, second=second):
            tensors = [each.clone() for each in (parameter, first, second)]
            numbers = (count, 3e-3, 0.9, 0.999, 1e-8, 0.05)
            adamw_step_(tensors[0], gradient, *tensors[1:], *numbers)
            return tensors

        state = optimizer.state[theirs]
        same(in_each_set(results), [theirs.detach(), state["exp_avg"], state["exp_avg_sq"]])
