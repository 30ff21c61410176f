"""Drawing tokens: ranges, seeds, and frequencies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import InputError
from ince.infer.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def frequencies(sampling: Sampling, num_draws: int = 20_000) -> torch.Tensor:
    uniforms = sampling.uniforms(0, num_draws)
    drawn = sampling.choose(LOGITS.expand(num_draws, -1), uniforms)
    return torch.bincount(drawn, minlength=4) / num_draws


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    assert Sampling().choose(logits, torch.zeros(2)).tolist() == [1, 0]


def test_draws_follow_the_probabilities() -> None:
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05])
    torch.testing.assert_close(frequencies(Sampling(1.0)), expected, atol=0.01, rtol=0)


def test_temperature_flattens() -> None:
    expected = (LOGITS / 2).softmax(-1)
    torch.testing.assert_close(frequencies(Sampling(2.0)), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.4, [1.0, 0.0, 0.0, 0.0]),
        (0.6, [0.625, 0.375, 0.0, 0.0]),
        (0.9, [0.5263, 0.3158, 0.1579, 0.0]),
    ],
)
def test_top_p_leaves_out_the_tail(top_p: float, expected: list[float]) -> None:
    found = frequencies(Sampling(1.0, top_p))
    torch.testing.assert_close(found, torch.tensor(expected), atol=0.012, rtol=0)


def test_rows_and_seeds_have_their_own_numbers() -> None:
    first = Sampling(1.0, seed=3).uniforms(5, 8)
    assert torch.equal(first, Sampling(1.0, seed=3).uniforms(5, 8))
    assert torch.equal(first[:4], Sampling(1.0, seed=3).uniforms(5, 4))
    assert not torch.equal(first, Sampling(1.0, seed=4).uniforms(5, 8))
    assert not torch.equal(first, Sampling(1.0, seed=3).uniforms(6, 8))


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    uniform=st.floats(0, 1, exclude_max=True),
    temperature=st.floats(0.01, 10),
    top_p=st.floats(1e-6, 1),
)
def test_every_draw_is_a_token_with_a_chance(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    token = Sampling(temperature, top_p).choose(row, torch.tensor([uniform])).item()
    assert 0 <= token < len(logits)
    chances = (row[0] / temperature).softmax(-1)
    better = chances[chances > chances[token]].sum()
    assert better < top_p + 1e-9


def test_a_number_next_to_one_falls_on_a_token_that_was_kept() -> None:
    logits = torch.tensor([[1.0, 1.1, 0.9, -50.0, -60.0]])
    for top_p in (1.0, 0.99):
        token = Sampling(0.7, top_p).choose(logits, torch.tensor([1 - 2**-53])).item()
        assert token <= (4 if top_p == 1 else 2)


def test_likely_neighbors_may_swap_without_changing_what_is_drawn() -> None:
    chances = torch.full((1, 1000), 1e-3)
    nudged = chances + 1e-9 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    uniforms = torch.linspace(0.0005, 0.9995, 1000)
    sampling = Sampling(1.0)
    first = sampling.choose(chances.log().expand(1000, -1), uniforms)
    assert torch.equal(first, sampling.choose(nudged.log().expand(1000, -1), uniforms))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("inf")}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="out of range"):
        Sampling(**wrong)


def test_nan_is_out_of_range() -> None:
    with pytest.raises(InputError, match="out of range"):
        Sampling(temperature=float("nan"))
