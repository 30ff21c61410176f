import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.example import Example
from ince.data.order import epoch_order
from ince.data.packing import PackingFacts, Row, pack_rows, single_rows
from ince.data.prefixes import num_shareable
from ince.errors import DataError

MAX_LENGTH = 16


@st.composite
def examples(draw):
    """Few different tokens, so that many examples begin alike."""
    length = draw(st.integers(1, MAX_LENGTH))
    ids = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    first_target = draw(st.integers(1, length))
    targets = [i >= first_target for i in range(length)]
    return Example(tuple(ids), tuple(targets), str(draw(st.integers())))


def named(drawn):
    return [Example(e.input_ids, e.targets, str(place)) for place, e in enumerate(drawn)]


def tokens_of(row, index):
    """Tokens of one example of a row, gathered from its segments."""
    [own] = [i for i, s in enumerate(row.segments) if s.example == index and not s.shared]
    path = []
    while own >= 0:
        path.insert(0, row.segments[own])
        own = row.segments[own].parent
    assert [s.first for s in path] == [0, *[s.last for s in path[:-1]]]
    return tuple(
        token for s in path for token in row.examples[s.example].input_ids[s.first : s.last]
    )


@given(drawn=st.lists(examples(), max_size=30), seed=st.integers(0, 5), share=st.booleans())
def test_packing_loses_no_token_and_no_row_is_too_long(drawn, seed, share):
    every = named(drawn)
    rows = pack_rows(every, epoch_order(len(every), seed, 0), MAX_LENGTH, share=share)
    packed = [e.source for row in rows for e in row.examples]
    assert sorted(packed) == sorted(e.source for e in every)
    for row in rows:
        assert 0 < row.num_tokens <= MAX_LENGTH
        for index, example in enumerate(row.examples):
            assert tokens_of(row, index) == example.input_ids
        if not share:
            assert row.num_tokens == sum(example.num_tokens for example in row.examples)


class TokenTree:
    """A row under construction, token by token: what `pack_rows` says in tables."""

    def __init__(self):
        self.members, self.room, self.root = [], MAX_LENGTH, {}

    def cost(self, example):
        node = self.root
        for place in range(num_shareable(example)):
            node = node.get(example.input_ids[place])
            if node is None:
                return example.num_tokens - place
        return example.num_tokens - num_shareable(example)

    def take(self, example):
        self.room -= self.cost(example)
        self.members.append(example)
        node = self.root
        for token in example.input_ids[: num_shareable(example)]:
            node = node.setdefault(token, {})


def packed_token_by_token(drawn, order, window):
    packed = []
    for start in range(0, len(order), window):
        rows = []
        for example in (drawn[i] for i in order[start : start + window]):
            left = [row.room - row.cost(example) for row in rows]
            fitting = [i for i, room in enumerate(left) if room >= 0]
            if not fitting:
                rows.append(TokenTree())
                fitting, left = [len(rows) - 1], [*left, 0]
            rows[min(fitting, key=left.__getitem__)].take(example)
        packed += rows
    return packed


@given(drawn=st.lists(examples(), max_size=40), seed=st.integers(0, 5))
def test_rows_are_those_that_a_tree_of_tokens_gives(drawn, seed):
    order = epoch_order(len(drawn), seed, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ince.data.packing._WINDOW", 16)
        rows = pack_rows(drawn, order, MAX_LENGTH)
    expected = packed_token_by_token(drawn, order, 16)
    assert [row.examples for row in rows] == [tuple(row.members) for row in expected]
    assert [row.num_tokens for row in rows] == [MAX_LENGTH - row.room for row in expected]
    # What was known from packing is what the segments say.
    assert [Row(row.examples).num_tokens for row in rows] == [row.num_tokens for row in rows]


@given(drawn=st.lists(examples(), min_size=1, max_size=12))
def test_a_row_counts_a_shared_beginning_once(drawn):
    row = Row(tuple(drawn))
    assert max(e.num_tokens for e in drawn) <= row.num_tokens <= sum(e.num_tokens for e in drawn)
    for segment in row.segments:
        if segment.shared:
            example = row.examples[segment.example]
            assert not any(example.targets[segment.first : segment.last + 1])


@given(drawn=st.lists(examples(), max_size=30), seed=st.integers(0, 5))
def test_packing_is_a_function_of_examples_and_order(drawn, seed):
    order = epoch_order(len(drawn), seed, 0)
    assert pack_rows(drawn, order, MAX_LENGTH) == pack_rows(drawn, list(order), MAX_LENGTH)


def alone(length, token):
    return Example((token,) * length, (False, *[True] * (length - 1)), str(token))


def test_rows_are_filled_to_the_brim():
    every = [alone(length, token) for token, length in enumerate([6, 5, 5, 4])]
    rows = pack_rows(every, range(4), 10)
    assert [[e.source for e in row.examples] for row in rows] == [["0", "3"], ["1", "2"]]


def test_a_part_of_the_examples_can_be_packed():
    every = [alone(3, token) for token in range(3)]
    [row] = pack_rows(every, [2, 0], 6)
    assert sorted(e.source for e in row.examples) == ["0", "2"]


def test_another_epoch_packs_another_way():
    every = [alone(3 + token % 5, token) for token in range(60)]
    first, second = (pack_rows(every, epoch_order(60, 0, epoch), 24) for epoch in (0, 1))
    assert {row.examples for row in first} != {row.examples for row in second}


def test_nothing_packs_to_nothing():
    assert pack_rows([], [], 8) == []


@pytest.mark.parametrize("length", [0, 9])
def test_an_example_that_does_not_fit_is_refused(length):
    misfit = Example((1,) * length, (True,) * length, "d.jsonl, line 3")
    with pytest.raises(DataError, match=r"does not fit into a row[^$]*d\.jsonl, line 3"):
        pack_rows([misfit], [0], 8)


def test_single_rows_follow_the_order():
    rows = single_rows([alone(2, 0), alone(3, 1)], [1, 0])
    assert [(row.examples[0].source, row.num_tokens) for row in rows] == [("1", 3), ("0", 2)]


def test_how_full_rows_are_is_said():
    system = (1,) * 6
    every = [Example((*system, 2, token), (*[False] * 7, True), "x") for token in range(3, 7)]
    rows = pack_rows(every, range(4), 10)
    facts = PackingFacts.of(rows, 10)
    assert (facts.num_rows, facts.num_tokens, facts.num_shared) == (2, 20, 12)
    assert str(facts) == "packed into 2 rows, 100.0% full; shared beginnings save 38% of the tokens"
    assert str(PackingFacts.of([], 10)) == "packed into 0 rows, 0.0% full"
