from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.search.halving import Rung, cost, plan_rungs, survivors


def plan(num, *, eta=3, steps=900, least=10):
    rungs = plan_rungs(num, eta=eta, shortest_steps=steps, min_steps=least)
    return [(rung.num_candidates, rung.steps(steps)) for rung in rungs]


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (2, [(2, 300), (1, 900)]),
        (6, [(6, 300), (2, 900)]),
        (9, [(9, 100), (3, 300), (1, 900)]),
        (10, [(10, 100), (3, 300), (1, 900)]),
        (27, [(27, 34), (9, 100), (3, 300), (1, 900)]),
    ],
)
def test_the_better_third_goes_on_three_times_as_long(num, expected):
    assert plan(num) == expected


def test_the_first_rung_is_not_shorter_than_asked_for():
    assert plan(27, least=50) == [(27, 100), (9, 300), (3, 900)]
    assert plan(27, least=301) == [(27, 900)]
    assert plan(9, steps=1, least=1) == [(9, 1)]


def test_a_candidate_of_another_length_reaches_a_rung_at_the_same_share():
    rung = Rung(Fraction(1, 9), 9)
    assert (rung.steps(900), rung.steps(90), rung.steps(91)) == (100, 10, 11)


def test_the_cost_is_in_whole_trainings():
    assert cost(plan_rungs(9, eta=3, shortest_steps=900, min_steps=10)) == pytest.approx(
        9 / 9 + 3 * 2 / 9 + 1 * 6 / 9
    )
    assert cost([Rung(Fraction(1), 4)]) == 4


@given(st.integers(1, 300), st.integers(2, 7), st.integers(1, 5000), st.integers(1, 200))
def test_any_plan_ends_at_the_whole_training_and_only_narrows(num, eta, steps, least):
    rungs = plan_rungs(num, eta=eta, shortest_steps=steps, min_steps=least)
    assert rungs[0].num_candidates == num
    assert rungs[-1].share == 1
    ends = [rung.steps(steps) for rung in rungs]
    assert ends == sorted(set(ends))
    counts = [rung.num_candidates for rung in rungs]
    assert counts == sorted(counts, reverse=True)
    assert all(b == max(1, num // eta**i) for i, b in enumerate(counts))
    assert len(rungs) == 1 or ends[0] >= least
    assert 0 < cost(rungs) <= num


def test_the_survivors_are_the_best_and_earlier_ones_of_equals():
    losses = {0: 2.0, 1: 1.0, 3: 1.0, 4: 0.5, 7: 1.0}
    assert survivors(losses, Rung(Fraction(1), 3)) == [1, 3, 4]
    assert survivors(losses, Rung(Fraction(1), 9)) == [0, 1, 3, 4, 7]
    assert survivors({}, Rung(Fraction(1), 2)) == []
