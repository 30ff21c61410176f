import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import QuantError
from ince.ops import dequantize_8bit, dynamic_map, dynamic_thresholds, quantize_8bit
from ince.ops.backends import reference_only

OPS = torch.ops.ince


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (256,), (257,), (7, 300)], ids=str)
@pytest.mark.parametrize("signed", [True, False])
def test_the_operators_keep_the_rules_of_torch_library(shape, dtype, signed):
    values = draw(*shape, dtype=dtype)
    codes, absmax = quantize_8bit(values, signed=signed)
    assert (codes.shape, codes.dtype) == (values.shape, torch.uint8)
    assert absmax.shape == (math.ceil(values.numel() / 256),)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.quantize_8bit.default, (values, signed), test_utils=checks)
    args = (codes, absmax, signed)
    torch.library.opcheck(OPS.dequantize_8bit.default, args, test_utils=checks)


@given(st.integers(1, 700), st.integers(0, 99), st.booleans())
def test_a_code_is_the_nearest_value_of_the_map(n, seed, signed):
    values = draw(n, seed=seed) ** 3
    if not signed:
        values = values.abs()
    codes, absmax = quantize_8bit(values, signed=signed)
    scale = absmax.repeat_interleave(256)[:n]
    normalized = (values / scale).double()
    best = (normalized[:, None] - dynamic_map(signed=signed).double()).abs().amin(1)
    error = (normalized - dynamic_map(signed=signed).double()[codes.int()]).abs()
    if not signed:
        # Beside the least value, zero is passed over.
        least = dynamic_map(signed=False)[1]
        best = best.where(normalized > least, error)
        assert bool((codes[values > 0] > 0).all())
    torch.testing.assert_close(error, best, rtol=0, atol=1e-7)
    back = dequantize_8bit(codes, absmax, signed=signed)
    # Within half of the widest step of the map: a hundredth, in signed blocks.
    assert float(((back - values).abs() / scale).max()) <= (0.0071 if signed else 0.0036)


def test_codes_survive_being_expanded_and_coded_again():
    for signed in (True, False):
        values = draw(5000).abs() if not signed else draw(5000)
        codes, absmax = quantize_8bit(values, signed=signed)
        again = quantize_8bit(dequantize_8bit(codes, absmax, signed=signed), signed=signed)
        # The largest of a block is ±1 times its scale, but -1 is not in the signed map.
        kept = again[0] == codes
        assert bool((again[1] == absmax).all()) or signed
        assert float(kept.float().mean()) > (0.9 if signed else 0.999999)


def test_a_block_of_zeros_is_zero():
    codes, absmax = quantize_8bit(torch.zeros(300))
    assert not absmax.any()
    assert not dequantize_8bit(codes, absmax).any()


def test_thresholds_lie_between_values():
    for signed in (True, False):
        values, thresholds = dynamic_map(signed=signed), dynamic_thresholds(signed=signed)
        assert bool((values[:-1] <= thresholds).all())
        assert bool((thresholds < values[1:]).all())
        assert values[0 if not signed else 127] == 0
        assert values[-1] == 1
    assert dynamic_thresholds(signed=False)[0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    values = torch.ones(300)
    values[[4, 290]] = bad
    for _ in range(2):
        with pytest.raises(QuantError, match="2 of 300 are not finite"):
            quantize_8bit(values)
        with reference_only(), pytest.raises(QuantError, match="2 of 300"):
            quantize_8bit(values)


def test_parts_that_do_not_fit_are_refused():
    codes, absmax = quantize_8bit(torch.ones(600))
    for args, match in (
        ((codes, absmax[:2]), "absmax has the wrong length"),
        ((codes[:512], absmax), "absmax has the wrong length"),
        ((codes.int(), absmax), "codes has the wrong type"),
        ((codes, absmax.double()), "absmax has the wrong type"),
        ((codes, absmax.to("meta")), "two devices"),
    ):
        with pytest.raises(QuantError, match=match):
            dequantize_8bit(*args)
    for dtype in (torch.float64, torch.int32, torch.bool, torch.complex64):
        with pytest.raises(QuantError, match="cannot be coded"):
            quantize_8bit(torch.ones(3).to(dtype))
