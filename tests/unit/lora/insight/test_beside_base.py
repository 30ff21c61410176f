import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.factors import Factors
from ince.lora.insight import beside_base as module
from ince.lora.insight.beside_base import beside_base, magnitude_gain
from ince.lora.insight.spectrum import factor_svd


def made(seed, out, fan_in, r):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(r, fan_in, generator=generator), torch.randn(out, r, generator=generator)
    return Factors(a, b, 0.5), torch.randn(out, fan_in, generator=generator)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_the_numbers_are_those_of_the_dense_matrices(seed, out, fan_in, r, is_swapped):
    factors, weight = made(seed, out, fan_in, r)
    delta = factors.delta().double()
    u, sigma, vh = torch.linalg.svd(delta, full_matrices=False)
    k = int((sigma > 1e-5 * sigma[0]).sum())
    caught = float((u[:, :k].t() @ weight.double() @ vh[:k].t()).norm())
    found = beside_base(
        factor_svd(factors), weight.t() if is_swapped else weight, is_swapped=is_swapped
    )
    assert found.weight_norm == pytest.approx(float(weight.norm()), rel=1e-5)
    assert found.relative_norm == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
    assert found.amplification == pytest.approx(float(delta.norm()) / caught, rel=1e-3)
    cosine = float((delta * weight).sum() / delta.norm() / weight.double().norm())
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    by_chance = found.relative_norm * math.sqrt(out * fan_in) / k
    assert found.random_amplification == pytest.approx(by_chance, rel=1e-9)


def test_blocks_of_rows_change_nothing(monkeypatch):
    factors, weight = made(0, 50, 20, 3)
    whole = beside_base(factor_svd(factors), weight)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    for swapped in (False, True):
        parts = beside_base(
            factor_svd(factors), weight.t() if swapped else weight, is_swapped=swapped
        )
        for name in ("weight_norm", "relative_norm", "amplification", "cosine"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_random_directions_are_amplified_as_said():
    torch.manual_seed(0)
    weight = torch.randn(60, 80)
    measured = [
        beside_base(factor_svd(Factors(torch.randn(4, 80), torch.randn(60, 4), 1.0)), weight)
        for _ in range(60)
    ]
    ratio = sum(each.amplification / each.random_amplification for each in measured) / 60
    assert ratio == pytest.approx(1.0, rel=0.1)


def test_an_update_of_zero_and_a_weight_of_zero():
    zero = factor_svd(Factors(torch.randn(3, 6), torch.zeros(5, 3), 1.0))
    found = beside_base(zero, torch.randn(5, 6))
    assert (found.relative_norm, found.amplification, found.cosine) == (0.0, None, None)
    factors, _ = made(0, 5, 6, 3)
    found = beside_base(factor_svd(factors), torch.zeros(5, 6))
    assert (found.relative_norm, found.amplification, found.cosine) == (None, None, None)


def test_the_gain_of_dora(monkeypatch):
    factors, weight = made(0, 50, 20, 3)
    norm = (weight + factors.delta()).norm(dim=1)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    gain = magnitude_gain(2 * norm, factors, weight)
    torch.testing.assert_close(gain, torch.full((50,), 2.0))
