import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.example import Example
from ince.data.order import epoch_order
from ince.data.packing import pack, pack_rows, single_rows
from ince.errors import DataError

lengths_of = st.lists(st.integers(1, 64), max_size=80)


def example(length, name):
    return Example(tuple(range(length)), (False, *[True] * (length - 1)), name)


@given(lengths=lengths_of, seed=st.integers(0, 5))
def test_every_example_is_in_one_row_and_no_row_is_too_long(lengths, seed):
    packs = pack(lengths, 64, epoch_order(len(lengths), seed, 0))
    assert sorted(i for row in packs for i in row.examples) == list(range(len(lengths)))
    for row in packs:
        assert row.num_tokens == sum(lengths[i] for i in row.examples) <= 64


@given(lengths=lengths_of)
def test_no_two_rows_could_be_one(lengths):
    rooms = sorted(row.num_tokens for row in pack(lengths, 64))
    assert len(rooms) < 2 or rooms[0] + rooms[1] > 64


@given(lengths=lengths_of, seed=st.integers(0, 5))
def test_packing_is_a_function_of_lengths_and_order(lengths, seed):
    order = epoch_order(len(lengths), seed, 0)
    assert pack(lengths, 64, order) == pack(lengths, 64, list(order))


@given(lengths=lengths_of, seed=st.integers(0, 5))
def test_rows_keep_all_tokens_of_the_examples_they_are_given(lengths, seed):
    examples = [example(length, str(i)) for i, length in enumerate(lengths)]
    order = epoch_order(len(lengths), seed, 1)
    rows = pack_rows(examples, order, 64)
    assert sorted(e.source for row in rows for e in row.examples) == sorted(map(str, order))
    assert sum(row.num_tokens for row in rows) == sum(lengths)
    for row in rows:
        places = [order.index(int(e.source)) for e in row.examples]
        assert places == sorted(places)


def test_best_fit_fills_rows_to_the_brim():
    assert [row.examples for row in pack([6, 5, 5, 4], 10)] == [(0, 3), (1, 2)]


def test_a_subset_can_be_packed():
    assert [row.examples for row in pack([3, 3, 3], 6, order=[2, 0])] == [(2, 0)]


def test_rows_of_many_short_examples_do_not_all_come_first():
    lengths = [60] * 40 + [4] * 400
    early = 0
    for seed in range(20):
        rows = pack(lengths, 64, epoch_order(len(lengths), seed, 0))
        early += sum(len(row.examples) > 2 for row in rows[: len(rows) // 2])
    short_rows = sum(len(row.examples) > 2 for row in rows)
    assert 0.35 < early / (20 * short_rows) < 0.65


def test_nothing_packs_to_nothing():
    assert pack([], 8) == []


@pytest.mark.parametrize("length", [0, 9])
def test_an_example_that_does_not_fit_is_refused(length):
    with pytest.raises(DataError, match="does not fit into a row"):
        pack([3, length], 8)


def test_single_rows_follow_the_order():
    examples = [example(2, "a"), example(3, "b")]
    rows = single_rows(examples, [1, 0])
    assert [(row.examples[0].source, row.num_tokens) for row in rows] == [("b", 3), ("a", 2)]
