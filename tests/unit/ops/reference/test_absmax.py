import pytest
import torch

from ince.errors import QuantError
from ince.ops import dequantize_absmax, dynamic_map, quantize_absmax


def test_a_block_of_zeros_beside_others_stays_finite():
    # The last block equals the mean: nothing is left of it to scale by.
    absmax = torch.cat([torch.full((128,), 0.5), torch.full((128,), 1.5), torch.ones(10)])
    codes, nested_absmax, offset = quantize_absmax(absmax)
    assert offset == 1
    assert nested_absmax.tolist() == [0.5, 0.0]
    assert not codes[256:].any()
    restored = dequantize_absmax(codes, nested_absmax, offset)
    assert torch.equal(restored[256:], torch.ones(10))


def test_every_code_expands_to_its_value():
    codes = torch.arange(256, dtype=torch.uint8)
    values = dequantize_absmax(codes, torch.ones(1), torch.zeros(()))
    assert torch.equal(values, dynamic_map())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(bad):
    absmax = torch.ones(300)
    absmax[7] = bad
    with pytest.raises(QuantError, match="not finite") as caught:
        quantize_absmax(absmax)
    assert caught.value.got is not None
    assert "1 of 300" in caught.value.got


def test_scales_whose_sum_is_too_large_are_refused():
    with pytest.raises(QuantError, match="too large"):
        quantize_absmax(torch.full((600,), 3e38))
