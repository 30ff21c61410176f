import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.search.lr_range import RangeTest, Suggestion, suggest


def swept_rates(loss_at, num_steps=60, low=1e-6, high=1e-1, stop_factor=4.0):
    test = RangeTest(low=low, high=high, num_steps=num_steps, stop_factor=stop_factor)
    while not test.is_over:
        test.add(loss_at(test.rate(len(test.points))))
    return test


def valley(lr):
    """Level, falling from 1e-4 on, lowest at 1e-2, and rising fast."""
    x = math.log10(lr)
    if x < -4:
        return 4.0
    return 4.0 - (x + 4) if x < -2 else 2.0 + 30 * (x + 2) ** 2


def test_the_rates_grow_by_one_factor():
    test = RangeTest(low=1e-6, high=1e-1, num_steps=6, stop_factor=4)
    assert [test.rate(step) for step in range(6)] == pytest.approx(
        [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    )


def test_the_mean_is_that_of_the_losses_from_the_first_on():
    test = RangeTest(low=1e-6, high=1e-1, num_steps=50, stop_factor=4)
    for _ in range(5):
        test.add(2.5)
    assert [point.smoothed for point in test.points] == pytest.approx([2.5] * 5)
    assert [point.step for point in test.points] == [1, 2, 3, 4, 5]


def test_a_loss_that_goes_through_the_roof_ends_it():
    test = swept_rates(lambda lr: 4.0 if lr < 1e-3 else 4.0 + 1e4 * lr, num_steps=100)
    assert test.diverged
    assert test.points[-1].smoothed > 16
    assert test.points[-1].lr < 1e-2


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_and_is_no_point(loss):
    test = swept_rates(lambda lr: 4.0 if lr < 1e-3 else loss)
    assert test.diverged
    assert all(point.lr < 1e-3 for point in test.points)


def test_one_bad_batch_at_the_beginning_does_not_end_it():
    test = RangeTest(low=1e-6, high=1e-1, num_steps=60, stop_factor=2)
    for loss in (1.0, 9.0, 1.0):
        test.add(loss)
    assert not test.diverged


def test_what_is_suggested_lies_on_the_slope():
    found = suggest(swept_rates(valley).points, is_whole=True)
    assert isinstance(found, Suggestion)
    assert 1e-4 < found.steepest < 2e-2
    assert 5e-3 < found.minimum < 3e-2
    assert found.below_minimum == found.minimum / 10
    assert found.lr in (found.steepest, found.below_minimum)
    assert found.remark == ""


@pytest.mark.parametrize("seed", range(4))
def test_on_a_level_stretch_the_first_of_its_rates_counts(seed):
    noise = random.Random(seed)

    def basin(lr):
        """Falls from 1e-5 to 1e-4, is level to 2e-2, and rises."""
        x = math.log10(lr)
        fall = 2 * min(max(x + 5, 0), 1)
        return 4 - fall + 40 * max(x + 1.7, 0) ** 2 + noise.uniform(-0.02, 0.02)

    found = suggest(swept_rates(basin, num_steps=100).points, is_whole=True)
    # The mean comes down to the level within about a decade.
    assert 1e-4 < found.minimum < 2e-3
    assert found.lr == pytest.approx(found.minimum / 10)
    assert found.remark == ""


def test_a_loss_that_still_falls_is_remarked():
    points = swept_rates(lambda lr: 4.0 - math.log10(lr) / 2).points
    whole = suggest(points, is_whole=True)
    assert "still falling at the highest rate" in whole.remark
    assert "was stopped" in suggest(points[:30], is_whole=False).remark


@pytest.mark.parametrize("loss_at", [lambda _: 3.0, lambda lr: 3.0 + lr, lambda lr: 2.0 + 100 * lr])
def test_no_fall_no_suggestion(loss_at):
    assert "did not fall" in suggest(swept_rates(loss_at).points, is_whole=True)


def test_few_points_no_suggestion():
    assert "too few" in suggest(swept_rates(valley).points[:7], is_whole=False)


@given(st.lists(st.floats(0, 1e6), min_size=10, max_size=80))
def test_any_losses_give_a_rate_of_the_range_or_a_reason(losses):
    test = RangeTest(low=1e-6, high=1e-1, num_steps=len(losses), stop_factor=4)
    for loss in losses:
        if not test.is_over:
            test.add(loss)
    found = suggest(test.points, is_whole=True)
    if isinstance(found, Suggestion):
        assert test.low / 10 <= found.lr <= test.high * 1.001
        assert found.steepest <= found.minimum * 1.001
    else:
        assert found
