import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.factors import Factors
from ince.lora.insight.spectrum import (
    energy_rank,
    factor_svd,
    frobenius_inner,
    numerical_rank,
    stable_rank,
)


def made(seed, out, fan_in, r, s):
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(r, fan_in, generator=generator, dtype=torch.float64),
        torch.randn(out, r, generator=generator, dtype=torch.float64),
        s,
    )


SIDES = st.integers(1, 12)


@given(st.integers(0, 99), SIDES, SIDES, SIDES, st.sampled_from([0.25, 1.0, 8.0]))
def test_values_and_norms_are_those_of_the_dense_matrix(seed, out, fan_in, r, s):
    factors = made(seed, out, fan_in, r, s)
    dense = s * factors.b_OR @ factors.a_RD
    svd = factor_svd(factors)
    expected = torch.linalg.svdvals(dense)
    k = svd.sigma_K.numel()
    torch.testing.assert_close(svd.sigma_K, expected[:k], rtol=1e-9, atol=1e-9)
    assert float(svd.sigma_K.norm()) == pytest.approx(float(dense.norm()), rel=1e-9)
    assert float(svd.sigma_K[0]) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)))
    rebuilt = svd.u_OK @ torch.diag(svd.sigma_K) @ svd.v_KD
    torch.testing.assert_close(rebuilt, dense, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 99), SIDES, SIDES, SIDES, SIDES)
def test_the_inner_product_is_that_of_the_dense_matrices(seed, out, fan_in, r, other_r):
    one, other = made(seed, out, fan_in, r, 2.0), made(seed + 1, out, fan_in, other_r, 0.5)
    dense = (one.s * one.b_OR @ one.a_RD * (other.s * other.b_OR @ other.a_RD)).sum()
    assert frobenius_inner(one, other) == pytest.approx(float(dense), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [
        ([3.0, 1.0], 0.9, 1),  # exactly 9 of 10
        ([3.0, 1.0], 0.91, 2),
        ([1.0] * 10, 0.9, 9),
        ([1.0] * 10, 0.99, 10),
        ([1.0, 0.0, 0.0], 0.99, 1),
        ([0.0, 0.0], 0.9, 0),
        ([], 0.9, 0),
        ([2.0], 1.0, 1),
    ],
)
def test_the_rank_that_a_share_of_the_energy_needs(values, share, rank):
    assert energy_rank(torch.tensor(values), share) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_rank_of_a_share_is_the_least_that_reaches_it(values, share):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank, energy = energy_rank(sigma, share), sigma.square()
    total = float(energy.sum())
    if total == 0:
        assert rank == 0
        return
    assert float(energy[:rank].sum()) >= share * total * (1 - 1e-9)
    assert rank == 1 or float(energy[: rank - 1].sum()) < share * total


@pytest.mark.parametrize(
    ("values", "expected"), [([2.0, 0.0], 1.0), ([5.0] * 4, 4.0), ([2.0, 1.0], 1.25), ([0.0], 0.0)]
)
def test_the_stable_rank(values, expected):
    assert stable_rank(torch.tensor(values)) == expected
    assert stable_rank(torch.tensor([])) == 0.0


def test_rounding_is_no_direction():
    assert numerical_rank(torch.tensor([1.0, 1e-3, 1e-9])) == 2
    assert numerical_rank(torch.tensor([0.0, 0.0])) == 0
    assert numerical_rank(torch.tensor([])) == 0


def test_an_update_without_ranks_has_no_values():
    svd = factor_svd(Factors(torch.zeros(0, 5), torch.zeros(3, 0), 1.0))
    assert (svd.u_OK.shape, svd.sigma_K.shape, svd.v_KD.shape) == ((3, 0), (0,), (0, 5))
