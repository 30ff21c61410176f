from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.data import Example
from ince.errors import TrainingError
from ince.train.step import micro_batches
from ince.train.steps import StepPlan


def example(length, number):
    ids = tuple(1000 * (number + 1) + i for i in range(length))
    return Example(ids, (False, *[True] * (length - 1)), str(number))


def plan(lengths, **changes):
    options = {
        "packing": True,
        "max_length": 64,
        "batch_tokens": 128,
        "epochs": 1,
        "max_steps": None,
        "seed": 7,
    } | changes
    return StepPlan([example(n, i) for i, n in enumerate(lengths)], **options)


lengths_of = st.lists(st.integers(2, 64), min_size=1, max_size=60)


@settings(max_examples=50)
@given(lengths=lengths_of, packing=st.booleans(), num_passes=st.integers(1, 3))
def test_every_pass_sees_every_example_once(lengths, packing, num_passes):
    made = plan(lengths, packing=packing, epochs=num_passes)
    seen = Counter(
        e.source for step in range(made.num_steps) for row in made.rows(step) for e in row.examples
    )
    assert seen == Counter({str(i): num_passes for i in range(len(lengths))})


@settings(max_examples=50)
@given(lengths=lengths_of, batch_tokens=st.integers(8, 300))
def test_no_step_is_larger_than_asked_for_unless_one_row_is(lengths, batch_tokens):
    made = plan(lengths, batch_tokens=batch_tokens)
    for step in range(made.num_steps):
        rows = made.rows(step)
        assert len(rows) == 1 or sum(row.num_tokens for row in rows) <= batch_tokens


def test_passes_differ_in_order_and_seeds_too():
    def first_rows(**changes):
        made = plan([20] * 50, **changes)
        return [[e.source for row in made.rows(s) for e in row.examples] for s in range(3)]

    made = plan([20] * 50, epochs=2)
    again = [e.source for row in made.rows(made.num_steps // 2) for e in row.examples]
    assert first_rows()[0] != again
    assert first_rows() == first_rows()
    assert first_rows() != first_rows(seed=8)


def test_a_step_is_the_same_whatever_was_asked_before():
    lengths = [5, 9, 30, 64, 2, 17] * 10
    straight, resumed = plan(lengths, epochs=3), plan(lengths, epochs=3)
    for step in range(straight.num_steps):
        straight.rows(step)
    last = straight.num_steps - 1
    assert straight.rows(last) == resumed.rows(last)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(0.5, None, 5), (1, 3, 3), (2, None, 20)]
)
def test_the_budget(epochs, max_steps, expected):
    made = plan([64] * 10, batch_tokens=64, epochs=epochs, max_steps=max_steps)
    assert made.num_steps == expected


def test_progress_through_passes():
    made = plan([64] * 10, batch_tokens=64, epochs=2)
    assert [made.epoch_of(step) for step in (0, 5, 10, 20)] == [0, 0.5, 1, 2]


def test_nothing_to_train_on():
    with pytest.raises(TrainingError, match="nothing to train on"):
        plan([])


@settings(max_examples=50)
@given(lengths=lengths_of, limit=st.integers(8, 200))
def test_micro_batches_keep_the_rows_and_their_rectangles_fit(lengths, limit):
    rows = [row for step in [plan(lengths, batch_tokens=10_000)] for row in step.rows(0)]
    groups = micro_batches(rows, limit)
    assert [row for group in groups for row in group] == rows
    for group in groups:
        assert len(group) == 1 or len(group) * max(row.num_tokens for row in group) <= limit
    assert micro_batches(rows, None) == [rows]
