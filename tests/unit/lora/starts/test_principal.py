"""PiSSA and OLoRA: what is taken from the weight is its main part, and W is whole with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError
from ince.lora.starts.principal import olora, pissa

SIZES = st.integers(1, 24)


@st.composite
def matrices(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(SIZES), draw(SIZES)
    return torch.randn(shape).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@given(matrices(), st.floats(0.1, 8), st.data())
def test_pissa_takes_the_best_approximation(weight, s, data):
    r = data.draw(st.integers(1, min(weight.shape)))
    start = pissa(weight, r, s)
    taken = s * start.b_OR @ start.a_RD
    tail = torch.linalg.svdvals(weight.float())[r:].norm()
    torch.testing.assert_close((weight.float() - taken).norm(), tail, rtol=1e-3, atol=1e-4)
    a0, b0 = start.base_change
    assert torch.equal(a0, start.a_RD)
    assert torch.equal(b0, start.b_OR)
    assert a0.data_ptr() != start.a_RD.data_ptr()


@given(matrices(), st.data())
def test_olora_is_the_leading_part_of_q_and_r(weight, data):
    r = data.draw(st.integers(1, min(weight.shape)))
    start = olora(weight, r)
    torch.testing.assert_close(start.b_OR.t() @ start.b_OR, torch.eye(r), rtol=0, atol=1e-5)
    assert torch.equal(start.a_RD[:, :r], start.a_RD[:, :r].triu())
    if r == weight.shape[1] <= weight.shape[0]:
        torch.testing.assert_close(start.b_OR @ start.a_RD, weight.float(), rtol=0, atol=1e-4)


def test_random_projection_comes_near():
    torch.manual_seed(0)
    weight = torch.randn(60, 40) @ torch.diag(0.8 ** torch.arange(40.0)) @ torch.randn(40, 50)
    exact, near = pissa(weight, 6, 2.0), pissa(weight, 6, 2.0, num_iterations=8)
    best, reached = [(weight - 2.0 * s.b_OR @ s.a_RD).norm() for s in (exact, near)]
    assert best <= reached < 1.02 * best


@pytest.mark.parametrize("make", [lambda w, r: pissa(w, r, 1.0), olora])
@pytest.mark.parametrize(
    ("weight", "r", "text"),
    [
        (torch.randn(4, 6), 5, "1 to 4"),
        (torch.randn(4, 6), 0, "1 to 4"),
        (torch.full((4, 6), float("nan")), 2, "24 of 24 are NaN"),
        (torch.empty(0, 6), 1, "not"),
        (torch.randn(4), 1, "not"),
        (torch.ones(4, 6, dtype=torch.int32), 1, "not"),
    ],
)
def test_what_cannot_be_decomposed_is_named(make, weight, r, text):
    with pytest.raises(AdapterError, match=text):
        make(weight, r)


def test_a_weight_of_zeros_has_no_main_part():
    with pytest.raises(AdapterError, match="no main part"):
        pissa(torch.zeros(4, 6), 2, 1.0)
