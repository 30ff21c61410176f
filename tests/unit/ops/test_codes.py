import hashlib
import math
from statistics import NormalDist

import pytest
import torch

from ince.ops import CODES, NF4_CODE, QUANT_TYPES, code_of, dynamic_map


def test_the_code_is_made_of_normal_quantiles():
    outermost = ((1 - 1 / 30) + (1 - 1 / 32)) / 2
    quantile = NormalDist().inv_cdf

    def half(num_steps):
        grid = [outermost + (0.5 - outermost) * i / num_steps for i in range(num_steps)]
        return [quantile(p) for p in grid]

    values = sorted([*half(8), 0.0, *(-q for q in half(7))])
    expected = [value / max(values) for value in values]
    assert len(NF4_CODE) == 16
    assert all(math.isclose(a, b, abs_tol=2e-7) for a, b in zip(NF4_CODE, expected, strict=True))


def test_the_code_is_exact_in_float32():
    assert code_of("nf4").double().tolist() == list(NF4_CODE)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_a_code_has_sixteen_values_over_the_whole_range_and_an_exact_zero(quant_type):
    values = code_of(quant_type)
    assert (values.shape, values.dtype, values.device.type) == ((16,), torch.float32, "cpu")
    assert torch.equal(values, torch.tensor(CODES[quant_type]))
    assert (float(values.min()), float(values.max())) == (-1.0, 1.0)
    zeros = values[values == 0]
    assert len(zeros) == (2 if quant_type == "fp4" else 1)
    assert not zeros.signbit().any()


def test_fp4_has_a_sign_bit():
    values = code_of("fp4")
    assert torch.equal(values[8:], -values[:8])
    assert values[:8].unique().mul(12).tolist() == [0, 0.0625, 2, 3, 4, 6, 8, 12]


def test_int4_has_equal_steps():
    values = code_of("int4")
    assert torch.allclose(values[:15] * 7, torch.arange(-7.0, 8.0))
    assert torch.equal(values[:7], -values[8:15].flip(0))


def test_the_dynamic_map_is_the_same_on_every_machine():
    values = dynamic_map()
    assert values.dtype == torch.float32
    assert values.shape == (256,)
    digest = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == DIGEST


def test_the_dynamic_map_is_ascending_and_symmetric_but_for_one():
    values = dynamic_map()
    assert torch.equal(values, values.sort().values)
    assert values[127] == 0
    assert values[255] == 1
    assert torch.equal(values[:127], -values[128:255].flip(0))
    assert round(float(values[0]), 5) == -0.99297


DIGEST = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
