import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.data.batch import IGNORED, attention_mask
from ince.data.collation import collate
from ince.data.example import Example
from ince.data.packing import Row


@st.composite
def examples(draw):
    """Few different tokens, so that many examples begin alike."""
    length = draw(st.integers(1, 8))
    ids = draw(st.lists(st.integers(3, 4), min_size=length, max_size=length))
    targets = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return Example(tuple(ids), tuple(targets), draw(st.sampled_from("abc")))


row_lists = st.lists(
    st.lists(examples(), min_size=1, max_size=5).map(lambda row: Row(tuple(row))),
    min_size=1,
    max_size=3,
)


def places(row, index):
    """Where in its row the tokens of an example stand, in their order."""
    starts = [0]
    for segment in row.segments:
        starts.append(starts[-1] + segment.last - segment.first)
    [at] = [i for i, s in enumerate(row.segments) if s.example == index and not s.shared]
    path = []
    while at >= 0:
        path = [*range(starts[at], starts[at + 1]), *path]
        at = row.segments[at].parent
    return path


@given(rows=row_lists)
def test_each_example_stands_in_its_row_with_its_own_positions_and_labels(rows):
    batch = collate(rows, 2)
    document = 0
    num_targets = 0
    for b, row in enumerate(rows):
        for index, example in enumerate(row.examples):
            document += 1
            here = places(row, index)
            assert batch.input_ids[b, here].tolist() == list(example.input_ids)
            assert batch.position_ids[b, here].tolist() == list(range(example.num_tokens))
            expected = [
                token if target and place else IGNORED
                for place, (token, target) in enumerate(
                    zip(example.input_ids, example.targets, strict=True)
                )
            ]
            assert batch.labels[b, here].tolist() == expected
            num_targets += sum(label != IGNORED for label in expected)
            for place, before in zip(here[1:], here, strict=False):
                if batch.labels[b, place] != IGNORED:
                    assert place == before + 1, "the row's shift by one is the example's"
                    assert batch.document_ids[b, place] == document
        padding = slice(row.num_tokens, None)
        assert (batch.segment_ids[b, : row.num_tokens] > 0).all()
        assert (batch.segment_ids[b, padding] == 0).all()
        assert (batch.document_ids[b, padding] == 0).all()
        assert (batch.input_ids[b, padding] == 2).all()
        assert (batch.labels[b, padding] == IGNORED).all()
        assert (batch.position_ids[b, padding] == 0).all()
    assert batch.num_tokens == sum(row.num_tokens for row in rows)
    assert batch.num_targets == num_targets, "every target is counted, and none twice"
    assert batch.sources == tuple(e.source for row in rows for e in row.examples)


@given(rows=row_lists)
def test_each_token_sees_its_own_example_before_it_and_nothing_else(rows):
    batch = collate(rows, 2)
    mask = attention_mask(batch)
    length = batch.input_ids.shape[1]
    assert mask.shape == (len(rows), 1, length, length)
    assert mask.dtype == torch.bool
    expected = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for b, row in enumerate(rows):
        for index in range(len(row.examples)):
            here = places(row, index)
            for i, query in enumerate(here):
                expected[b, query, :] = False
                expected[b, query, here[: i + 1]] = True
    assert torch.equal(mask[:, 0], expected)


@given(rows=row_lists, pad_to_multiple=st.integers(1, 9))
def test_rows_are_padded_no_further_than_asked(rows, pad_to_multiple):
    length = collate(rows, 2, pad_to_multiple=pad_to_multiple).input_ids.shape[1]
    longest = max(row.num_tokens for row in rows)
    assert length % pad_to_multiple == 0
    assert longest <= length < longest + pad_to_multiple


def test_no_query_sees_nothing():
    mask = attention_mask(collate([Example((5,), (False,), "a")], 0))
    scores = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    assert torch.isfinite(scores.softmax(-1)).all()


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
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("rows", [[], [Row(())]])
def test_nothing_cannot_be_collated(rows):
    with pytest.raises(ValueError, match="at least one row"):
        collate(rows, 0)


@given(rows=row_lists, data=st.data())
def test_some_rows_of_a_batch_are_a_batch(rows, data):
    first = data.draw(st.integers(0, len(rows) - 1))
    last = data.draw(st.integers(first + 1, len(rows)))
    batch = collate(rows, 0)
    part = batch.of_rows(range(first, last))
    alone = collate(rows[first:last], 0)
    length = alone.input_ids.shape[1]
    for name in ("input_ids", "position_ids", "segment_ids", "document_ids", "labels"):
        ours, theirs = getattr(part, name), getattr(alone, name)
        assert torch.equal(ours[:, :length], theirs)
    num_segments = alone.sees.shape[1]
    assert torch.equal(part.sees[:, :num_segments, :num_segments], alone.sees)
    assert (part.num_tokens, part.num_targets) == (alone.num_tokens, alone.num_targets)
    assert part.sources == alone.sources
    assert batch.of_rows(range(len(rows))) is batch
