import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.allocation.schedule import budget_at, last_allocation
from ince.lora.config import AdaLoraConfig


def config(**values):
    return AdaLoraConfig(**({"init_r": 10, "target_r": 4, "total_step": 100} | values))


@given(data=st.data())
def test_it_falls_from_all_to_the_target_and_never_rises(data):
    tinit, tfinal = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))
    each = config(tinit=tinit, tfinal=tfinal, target_r=data.draw(st.integers(1, 10)))
    last = last_allocation(each)
    ranks = [budget_at(step, each, num_ranks=50, num_layers=5).ranks for step in range(last + 1)]
    assert ranks == sorted(ranks, reverse=True)
    assert set(ranks[: tinit + 1]) == {50}
    assert ranks[-1] == 5 * each.target_r


def test_it_is_a_cube():
    each = config(tinit=20, tfinal=20)
    assert budget_at(50, each, num_ranks=50, num_layers=5).ranks == int(30 * 0.5**3 + 20)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, False), (9, False), (10, False), (11, False), (12, True), (14, False)],
)
def test_it_is_time_every_few_steps_after_the_start(step, expected):
    each = config(tinit=10, tfinal=21, deltaT=3)
    assert budget_at(step, each, num_ranks=50, num_layers=5).allocate is expected


def test_the_last_step_always_allocates():
    each = config(tinit=10, tfinal=21, deltaT=7)
    assert budget_at(79, each, num_ranks=50, num_layers=5) == (20, True)


def test_an_adapter_that_lost_ranks_has_none_to_gain():
    assert budget_at(100, config(), num_ranks=12, num_layers=5).ranks == 12
