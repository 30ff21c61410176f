import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.data.batch import IGNORED, attention_mask, block_diagonal_mask, collate
from ince.data.example import Example
from ince.data.packing import Row


@st.composite
def examples(draw):
    length = draw(st.integers(1, 12))
    ids = draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))
    targets = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return Example(tuple(ids), tuple(targets), draw(st.sampled_from("abc")))


row_lists = st.lists(st.lists(examples(), min_size=1, max_size=4), min_size=1, max_size=4)


@given(rows=row_lists, pad_to_multiple=st.integers(1, 9))
def test_a_batch_holds_each_example_with_its_own_positions(rows, pad_to_multiple):
    batch = collate([Row(tuple(r)) for r in rows], 2, pad_to_multiple=pad_to_multiple)
    longest = max(sum(e.num_tokens for e in row) for row in rows)
    assert batch.input_ids.shape[1] % pad_to_multiple == 0
    assert longest <= batch.input_ids.shape[1] < longest + pad_to_multiple
    for b, row in enumerate(rows):
        for segment, example in enumerate(row, start=1):
            here = batch.segment_ids[b] == segment
            assert batch.input_ids[b, here].tolist() == list(example.input_ids)
            assert batch.position_ids[b, here].tolist() == list(range(example.num_tokens))
            labels = [
                token if target and place else IGNORED
                for place, (token, target) in enumerate(
                    zip(example.input_ids, example.targets, strict=True)
                )
            ]
            assert batch.labels[b, here].tolist() == labels
        padding = batch.segment_ids[b] == 0
        assert int((~padding).sum()) == sum(e.num_tokens for e in row)
        assert (batch.input_ids[b, padding] == 2).all()
        assert (batch.labels[b, padding] == IGNORED).all()
        assert (batch.position_ids[b, padding] == 0).all()
    assert batch.num_tokens == sum(e.num_tokens for row in rows for e in row)
    assert batch.num_targets == sum(sum(e.targets[1:]) for row in rows for e in row)
    assert batch.sources == tuple(e.source for row in rows for e in row)


def test_the_stop_token_is_learnt_though_it_is_the_padding_token():
    batch = collate([Example((5, 6, 2), (False, True, True), "a")], 2)
    assert batch.labels.tolist() == [[IGNORED, 6, 2, *[IGNORED] * 5]]
    assert batch.num_targets == 2


def test_an_example_may_stand_for_a_row():
    example = Example((5, 6), (False, True), "a")
    alone, row = collate([example], 0), collate([Row((example,))], 0)
    assert torch.equal(alone.labels, row.labels)
    assert alone.sources == row.sources == ("a",)


def test_a_batch_moves_whole():
    moved = collate([Example((5, 6), (False, True), "a")], 0).to("meta")
    tensors = (moved.input_ids, moved.position_ids, moved.segment_ids, moved.labels)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("rows", [[], [Row(())]])
def test_nothing_cannot_be_collated(rows):
    with pytest.raises(ValueError, match="at least one row"):
        collate(rows, 0)


@given(
    rows=st.integers(1, 9).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3
        )
    )
)
def test_the_mask_is_what_its_definition_says(rows):
    mask = block_diagonal_mask(torch.tensor(rows))
    length = len(rows[0])
    assert mask.shape == (len(rows), 1, length, length)
    assert mask.dtype == torch.bool
    for b, row in enumerate(rows):
        for query in range(length):
            for key in range(length):
                same = row[query] == row[key] != 0 and key <= query
                assert bool(mask[b, 0, query, key]) == (same or query == key)


def test_no_query_sees_nothing():
    batch = collate([Example((5,), (False,), "a")], 0)
    mask = attention_mask(batch)
    assert mask.any(-1).all()
    scores = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    assert torch.isfinite(scores.softmax(-1)).all()
