"""The leading triplets: those of the exact decomposition, and the same on every run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.starts.leading import leading_svd


def decaying(num_rows, num_columns, rate=0.9):
    torch.manual_seed(0)
    side = min(num_rows, num_columns)
    u = torch.linalg.qr(torch.randn(num_rows, side)).Q
    v = torch.linalg.qr(torch.randn(num_columns, side)).Q
    return (u * rate ** torch.arange(side)) @ v.t()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 25), st.integers(0, 2**31))
def test_small_matrices_are_exact(num_rows, num_columns, num_triplets, seed):
    matrix = torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = leading_svd(matrix, num_triplets)
    kept = min(num_triplets, num_rows, num_columns)
    assert (u.shape, s.shape, v.shape) == ((num_rows, kept), (kept,), (kept, num_columns))
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix)[:kept], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v @ v.t(), torch.eye(kept), rtol=0, atol=1e-5)
    torch.testing.assert_close(u * s, matrix @ v.t(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_large_ones_are_projected_and_near(shape):
    matrix = decaying(*shape)
    u, s, v = leading_svd(matrix, 8)
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix)[:8], rtol=1e-4, atol=0)
    exact = torch.linalg.svd(matrix, full_matrices=False).Vh[:8]
    assert torch.linalg.svdvals(v @ exact.t()).min() > 0.999
    torch.testing.assert_close(u * s, matrix @ v.t(), rtol=0, atol=1e-4)


def test_it_leaves_the_global_generator_alone_and_fixes_signs():
    matrix = decaying(200, 120)
    before = torch.get_rng_state()
    first, second = leading_svd(matrix, 4), leading_svd(matrix, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    largest = first[2].gather(1, first[2].abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
