"""What holds for double quantization whatever backend computes it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import dequantize_absmax, dynamic_map, quantize_absmax


def scales(num_scales, seed=0):
    return torch.rand(num_scales, generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.02


def test_the_offset_is_the_mean():
    absmax = scales(1000)
    codes, nested_absmax, offset = quantize_absmax(absmax)
    assert torch.equal(offset, absmax.mean())
    assert offset.shape == ()
    assert (codes.shape, codes.dtype) == ((1000,), torch.uint8)
    assert (nested_absmax.shape, nested_absmax.dtype) == ((4,), torch.float32)


def test_equal_scales_are_exact():
    absmax = torch.full((300,), 0.25)
    assert torch.equal(dequantize_absmax(*quantize_absmax(absmax)), absmax)


def test_a_single_scale_is_exact():
    absmax = torch.tensor([0.3])
    assert torch.equal(dequantize_absmax(*quantize_absmax(absmax)), absmax)


def test_the_definition():
    codes, nested_absmax, offset = quantize_absmax(scales(700))
    spread = nested_absmax.repeat_interleave(256)[:700]
    expected = dynamic_map()[codes.long()] * spread + offset
    assert torch.equal(dequantize_absmax(codes, nested_absmax, offset), expected)


@settings(max_examples=50)
@given(st.integers(1, 1500), st.integers(0, 2**32))
def test_a_code_is_within_a_grid_step_of_the_nearest(num_scales, seed):
    absmax = scales(num_scales, seed)
    codes, nested_absmax, offset = quantize_absmax(absmax)
    spread = nested_absmax.repeat_interleave(256)[:num_scales]
    normalized = (absmax - offset) / spread.clamp(min=1e-30)
    distance = (normalized[:, None] - dynamic_map()).abs()
    chosen = distance.gather(1, codes.long()[:, None])[:, 0]
    is_coded = spread > 0
    assert bool((chosen <= distance.amin(1) + 2 / 65535 + 1e-6)[is_coded].all())


def test_the_error_is_small_against_the_scales():
    absmax = scales(10_000)
    error = (dequantize_absmax(*quantize_absmax(absmax)) - absmax).abs()
    assert float(error.max()) < 0.0005
    assert float((error / absmax).mean()) < 0.005
