"""Intervals: known cases, coverage, and what they refuse."""

import numpy as np
import pytest

from ince.errors import InputError
from ince.evaluate import Interval, paired_bootstrap


def test_constant_gain_has_no_width() -> None:
    interval = paired_bootstrap([0.1, 0.5, 0.9], [0.3, 0.7, 1.1])
    assert interval.difference == pytest.approx(0.2)
    assert interval.high - interval.low == pytest.approx(0, abs=1e-12)
    assert interval.excludes_zero


def test_the_same_model_twice() -> None:
    rows = list(np.random.default_rng(0).random(50))
    assert paired_bootstrap(rows, rows) == Interval(0.0, 0.0, 0.0)
    assert not paired_bootstrap(rows, rows).excludes_zero


def test_width_is_that_of_the_mean() -> None:
    generator = np.random.default_rng(1)
    base, gain = generator.normal(0, 5, 400), generator.normal(0.3, 1, 400)
    interval = paired_bootstrap(base.tolist(), (base + gain).tolist(), num_resamples=4000)
    standard_error = gain.std() / 20
    assert interval.low == pytest.approx(gain.mean() - 1.96 * standard_error, abs=0.01)
    assert interval.high == pytest.approx(gain.mean() + 1.96 * standard_error, abs=0.01)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        gain = (generator.random(80) < 0.3).astype(float)
        interval = paired_bootstrap([0.0] * 80, gain.tolist(), num_resamples=300, seed=trial)
        held += interval.low <= 0.3 <= interval.high
    assert 0.90 <= held / 300 <= 0.99


def test_weights_are_counts_of_what_rows_hold() -> None:
    interval = paired_bootstrap([0, 0], [1, 0], weights=[3, 1])
    assert interval.difference == 0.75
    assert (interval.low, interval.high) == (0.0, 1.0)
    without = paired_bootstrap([0, 0, 9], [1, 0, -9], weights=[1, 1, 0])
    assert without.difference == 0.5


def test_seed_fixes_the_interval() -> None:
    base, tuned = [0.0, 1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, 1.0]
    runs = [paired_bootstrap(base, tuned, num_resamples=50, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_more_confidence_is_wider() -> None:
    gain = np.random.default_rng(3).normal(0, 1, 60).tolist()
    narrow, wide = (
        paired_bootstrap([0.0] * 60, gain, confidence=confidence) for confidence in (0.8, 0.99)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_many_rows_are_drawn_in_pieces() -> None:
    gain = np.random.default_rng(4).normal(0, 1, 50_000).tolist()
    interval = paired_bootstrap([0.0] * 50_000, gain, num_resamples=120)
    assert interval.low < interval.difference < interval.high


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (([], []), {}),
        (([1], [1, 2]), {}),
        (([1, 2], [1, 2]), {"weights": [1]}),
        (([1, 2], [1, 2]), {"weights": [0, 0]}),
        (([1, 2], [1, 2]), {"weights": [-1, 2]}),
        (([1], [1]), {"confidence": 1.0}),
        (([1], [1]), {"num_resamples": 0}),
        (([float("nan")], [1]), {}),
    ],
)
def test_what_cannot_be_compared(arguments, options) -> None:
    with pytest.raises(InputError):
        paired_bootstrap(*arguments, **options)
