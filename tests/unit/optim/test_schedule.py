import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.optim import learning_rate


@given(
    num_steps=st.integers(1, 500),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_ratio=st.floats(0, 0.9),
)
def test_never_above_the_peak_and_never_negative(num_steps, schedule, warmup_ratio):
    rates = [
        learning_rate(
            step, num_steps=num_steps, peak=3e-4, schedule=schedule, warmup_ratio=warmup_ratio
        )
        for step in range(num_steps)
    ]
    assert all(0 < rate <= 3e-4 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_values_by_hand():
    def rate(step, schedule):
        return learning_rate(step, num_steps=10, peak=1.0, schedule=schedule, warmup_ratio=0.2)

    assert [rate(step, "linear") for step in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert rate(6, "cosine") == pytest.approx(0.5)
    assert rate(9, "constant") == 1.0
