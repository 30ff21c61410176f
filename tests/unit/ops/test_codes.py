import hashlib
import math
from statistics import NormalDist

import torch

from ince.ops import NF4_CODE, dynamic_map
from ince.ops.codes import nf4_code


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
    assert nf4_code().double().tolist() == list(NF4_CODE)


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
