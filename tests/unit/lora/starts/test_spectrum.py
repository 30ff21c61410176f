"""A spectrum in batches is the spectrum of all rows at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.starts.spectrum import RunningSpectrum


def exact(rows):
    centered = rows.double() - rows.double().mean(0)
    _, s, v = torch.linalg.svd(centered, full_matrices=False)
    return s.float(), v.float(), (s.square() / centered.square().sum()).clamp(max=1)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 2**31))
def test_batches_of_any_size_add_up(sizes, seed):
    # As many directions as inputs: nothing is dropped on the way, so all must agree.
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 6, generator=generator) * torch.tensor([9.0, 5, 3, 2, 1, 0.5])
    rows += 20
    spectrum = RunningSpectrum(6)
    for batch in rows.split(sizes):
        spectrum.add(batch)
    assert spectrum.num_rows == sum(sizes)
    if sum(sizes) < 8:
        return
    strengths, _, shares = exact(rows)
    torch.testing.assert_close(spectrum.strengths, strengths, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(spectrum.shares, shares, rtol=1e-3, atol=1e-4)


def test_leading_directions_come_through_a_narrow_memory():
    torch.manual_seed(0)
    scales = 0.8 ** torch.arange(64.0)
    rows = torch.randn(2000, 64) * scales + torch.randn(64)
    spectrum = RunningSpectrum(4)
    for batch in rows.split(100):
        spectrum.add(batch.to(torch.bfloat16))
    _, directions, shares = exact(rows)
    assert spectrum.components.shape == (4, 64)
    assert torch.linalg.svdvals(spectrum.components @ directions[:4].t()).min() > 0.99
    torch.testing.assert_close(spectrum.shares, shares[:4], rtol=0.02, atol=0)


def test_before_any_row_and_without_variance():
    spectrum = RunningSpectrum(3)
    assert spectrum.components.numel() == spectrum.shares.numel() == 0
    spectrum.add(torch.empty(0, 5))
    assert spectrum.num_rows == 0
    spectrum.add(torch.ones(4, 5))
    assert spectrum.shares.tolist() == pytest.approx([0, 0, 0])
