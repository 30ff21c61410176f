import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.insight.subspace import mean_grid, phi_grid, phi_table, random_phi, right_basis


def basis(seed, d, k):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]


@given(st.integers(0, 99), st.integers(8, 20), st.integers(1, 8), st.integers(1, 8))
def test_every_entry_is_the_formula(seed, d, k, other_k):
    one, other = basis(seed, d, k), basis(seed + 1, d, other_k)
    table = phi_table(one, other)
    for i in range(1, k + 1):
        for j in range(1, other_k + 1):
            direct = float((one[:, :i].t() @ other[:, :j]).norm() ** 2) / min(i, j)
            assert float(table[i - 1, j - 1]) == pytest.approx(direct, abs=1e-12)
            assert -1e-12 <= float(table[i - 1, j - 1]) <= 1 + 1e-12


@given(st.integers(0, 99), st.integers(1, 8), st.sampled_from([torch.float32, torch.bfloat16]))
def test_an_adapter_is_itself(seed, r, dtype):
    a = torch.randn(r, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)
    grid = phi_grid(right_basis(a), right_basis(a))
    assert grid is not None
    assert all(value == pytest.approx(1.0) for row in grid.values for value in row)
    assert grid.full == pytest.approx(1.0)


def test_orthogonal_subspaces_share_nothing():
    eye = torch.eye(6, dtype=torch.float64)
    grid = phi_grid(eye[:, :2], eye[:, 2:5])
    assert grid is not None
    assert {value for row in grid.values for value in row} == {0.0}


def test_random_subspaces_reach_the_baseline():
    d, i, j = 40, 3, 6
    pairs = [(basis(2 * n, d, i), basis(2 * n + 1, d, j)) for n in range(400)]
    mean = sum(float(phi_table(one, other)[-1, -1]) for one, other in pairs) / len(pairs)
    assert random_phi(i, j, d) == 6 / 40
    assert mean == pytest.approx(6 / 40, rel=0.05)


def test_a_row_of_zeros_is_no_direction():
    a = torch.randn(4, 9)
    a[2] = 0
    assert right_basis(a).shape == (9, 3)
    assert phi_grid(right_basis(torch.zeros(4, 9)), right_basis(a)) is None


def test_a_large_grid_has_places_left_out_and_its_ends_kept():
    one, other = basis(0, 200, 100), basis(1, 200, 3)
    grid = phi_grid(one, other)
    assert grid is not None
    assert len(grid.i_places) == 32
    assert (grid.i_places[0], grid.i_places[-1]) == (1, 100)
    assert grid.j_places == (1, 2, 3)
    assert grid.full == pytest.approx(float(phi_table(one, other)[-1, -1]))
    assert grid.random_full == 100 / 200


def test_the_mean_is_over_the_ranks_that_most_have():
    grids = [phi_grid(basis(n, 20, k), basis(n + 9, 20, k)) for n, k in enumerate((2, 3, 3))]
    mean, num = mean_grid(grids)
    assert num == 2
    assert mean.i_places == (1, 2, 3)
    assert mean.full == pytest.approx((grids[1].full + grids[2].full) / 2)
    assert mean_grid([]) is None
