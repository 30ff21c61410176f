"""How steps were cut is known after any end, and a cut halves what it cuts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data import Example, Row
from ince.train.micro_batch import Cut, Cuts, halved, shape_of
from ince.train.step import micro_batches


def row(length):
    return Row((Example(tuple(range(length)), (False, *[True] * (length - 1)), "x"),))


def made(folder, **changes):
    settings = {"recipe_digest": "d", "limit_bytes": 100, "cuts": [Cut(0, None)]} | changes
    return Cuts(folder, **settings)


def test_cuts_come_back_as_they_were_written(tmp_path):
    cuts = made(tmp_path)
    cuts.add(5, 64)
    cuts.add(9, 32)
    cuts.save()
    found = Cuts.read(tmp_path, recipe_digest="d")
    assert (found.cuts, found.limit_bytes) == ([Cut(0, None), Cut(5, 64), Cut(9, 32)], 100)
    assert [found.at(step) for step in (0, 4, 5, 8, 9, 1000)] == [None, None, 64, 64, 32, 32]


def test_a_cut_at_an_earlier_step_is_the_last_word(tmp_path):
    cuts = made(tmp_path)
    cuts.add(9, 32)
    cuts.add(5, 64)
    assert [cuts.at(step) for step in (0, 5, 9)] == [None, 64, 64]
    cuts.add(5, 16)
    assert cuts.cuts == [Cut(0, None), Cut(5, 16)]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe_digest": "another"},
        {"cuts": []},
        {"cuts": "none"},
        {"cuts": [{"step": 0}]},
        {"cuts": [{"step": 3, "micro_batch_tokens": 8}]},
        {"cuts": [{"step": 0, "micro_batch_tokens": "8"}]},
        {"cuts": [{"step": 0, "micro_batch_tokens": -8}]},
        {"cuts": [{"step": 0, "micro_batch_tokens": 8}, 7]},
        {"cuts": [{"step": "0", "micro_batch_tokens": 8}]},
        {"limit_bytes": "3GiB"},
    ],
)
def test_what_is_not_of_this_run_or_not_whole_counts_as_absent(tmp_path, change):
    made(tmp_path).save()
    path = tmp_path / "checkpoints" / "micro_batches.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert Cuts.read(tmp_path, recipe_digest="d") is None


def test_a_torn_file_counts_as_absent(tmp_path):
    assert Cuts.read(tmp_path, recipe_digest="d") is None
    made(tmp_path).save()
    path = tmp_path / "checkpoints" / "micro_batches.json"
    path.write_text(path.read_text()[:-9])
    assert Cuts.read(tmp_path, recipe_digest="d") is None


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_halving_ends_at_one_row_and_never_loses_any(lengths):
    rows = [row(length) for length in lengths]
    tokens, largest = None, sum(lengths) * 2 * len(lengths)
    for _ in range(20):
        groups = micro_batches(rows, tokens)
        assert [each for group in groups for each in group] == rows
        smaller = halved(rows, tokens)
        if smaller is None:
            assert all(len(group) == 1 for group in groups)
            return
        rectangles = [len(g) * max(r.num_tokens for r in g) for g in groups if len(g) > 1]
        assert smaller == max(rectangles) // 2 < largest
        tokens = largest = smaller
    pytest.fail("it never came to one row")


def test_the_shape_is_padded():
    assert shape_of([row(3), row(65)]) == (2, 128)
