"""Random starts: their spread, their zeros, and factors that meet nowhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError
from ince.lora.starts import drawn


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_orthogonal_factors_cancel(num_in, num_out, half):
    start = drawn.orthogonal((2 * half, num_in), (num_out, 2 * half))
    assert start.a_RD.shape == (2 * half, num_in)
    assert (start.b_OR @ start.a_RD).abs().max() < 1e-4
    assert start.a_RD.any()
    assert start.b_OR.any()


def test_an_odd_rank_has_no_halves():
    with pytest.raises(AdapterError, match="even rank"):
        drawn.orthogonal((3, 5), (4, 3))


def test_spreads():
    torch.manual_seed(0)
    start = drawn.kaiming((64, 400), (8, 64))
    assert start.a_RD.abs().max() <= 1 / math.sqrt(400)
    assert start.a_RD.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    assert not start.b_OR.any()
    normal = drawn.gaussian((64, 400), (8, 64), r=64)
    assert normal.a_RD.std().item() == pytest.approx(1 / 64, rel=0.02)
    assert not normal.b_OR.any()
    both = drawn.uniform((8, 400), (100, 8), bias=True)
    assert both.b_OR.any()
    assert both.bias_O.abs().max() <= 1 / math.sqrt(8)


def test_an_embedding_starts_with_a_of_zeros():
    start = drawn.embedding((4, 30), (8, 4), identity=True)
    assert not start.a_RD.any()
    assert start.b_OR.any()
    assert drawn.embedding((4, 30), (8, 4), identity=False).a_RD.any()


def test_a_convolutions_kernel_counts_in_the_fan_in():
    torch.manual_seed(0)
    assert drawn.kaiming((16, 3, 5, 5), (8, 16, 1, 1)).a_RD.abs().max() <= 1 / math.sqrt(75)
