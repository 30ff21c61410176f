"""The thin decomposition is that of the product, which is never formed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError
from ince.lora.combine.spectrum import left_vectors, right_vectors, singular_values, thin_svd

SIZES = st.integers(1, 9)


def pair(r, d, o, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, d, generator=generator), torch.randn(o, r, generator=generator)


@given(r=SIZES, d=SIZES, o=SIZES, s=st.sampled_from([1.0, 0.25, -2.0, 0.0]))
def test_it_is_the_decomposition_of_the_product(r, d, o, s):
    a, b = pair(r, d, o)
    svd, k = thin_svd(a, b, s), min(r, d, o)
    delta = s * b.double() @ a.double()
    assert svd.u_OK.shape == (o, k)
    assert svd.v_KD.shape == (k, d)
    torch.testing.assert_close((svd.u_OK * svd.sigma_K) @ svd.v_KD, delta)
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(svd.u_OK.mT @ svd.u_OK, eye)
    torch.testing.assert_close(svd.v_KD @ svd.v_KD.mT, eye)
    expected = torch.linalg.svdvals(delta)[:k].float()
    torch.testing.assert_close(singular_values(a, b, s), expected, rtol=1e-5, atol=1e-6)
    assert bool((svd.sigma_K.diff() <= 0).all())
    assert bool((svd.sigma_K >= 0).all())


def test_vectors_are_those_of_the_dense_matrix_up_to_signs():
    a, b = pair(3, 8, 6)
    u, _, v = torch.linalg.svd(b @ a, full_matrices=False)
    torch.testing.assert_close(left_vectors(a, b).abs(), u[:, :3].abs(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(right_vectors(a, b).abs(), v[:3].abs(), rtol=1e-4, atol=1e-5)
    assert left_vectors(a, b).dtype == right_vectors(a, b).dtype == torch.float32


def test_an_update_that_is_zero():
    a, b = pair(2, 5, 4)
    assert torch.equal(singular_values(a, 0 * b), torch.zeros(2))
    assert right_vectors(a, 0 * b).isfinite().all()


def test_updates_that_nearly_cancel_keep_their_digits():
    a, b = pair(2, 40, 30)
    moved = b * (1 + 2**-20)
    got = singular_values(torch.cat([a, a]), torch.cat([moved, -b], dim=1))
    expected = torch.linalg.svdvals((moved.double() - b.double()) @ a.double())[:2].float()
    torch.testing.assert_close(got[:2], expected, rtol=1e-5, atol=0)
    assert float(got[2:].max()) < 1e-9


def test_large_and_small_values_pass():
    a, b = pair(2, 5, 4)
    for size in (1e-18, 1e15):
        got = singular_values(a * size, b * size, 1 / size**2)
        torch.testing.assert_close(got, singular_values(a, b), rtol=1e-5, atol=0)


def test_half_precision_and_gradients_go_in():
    a, b = (factor.bfloat16().requires_grad_() for factor in pair(2, 5, 4))
    values = singular_values(a, b)
    assert values.dtype == torch.float32
    assert not values.requires_grad


@pytest.mark.parametrize("function", [thin_svd, singular_values, left_vectors, right_vectors])
def test_what_is_not_finite_is_refused(function):
    a, b = pair(2, 5, 4)
    a[1, 3] = torch.nan
    with pytest.raises(AdapterError, match="NaN"):
        function(a, b)
