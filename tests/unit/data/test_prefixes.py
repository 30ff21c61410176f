from hypothesis import given
from hypothesis import strategies as st

from ince.data.example import Example
from ince.data.prefixes import agreements, num_shareable, segments_of


@st.composite
def examples(draw):
    """Few different tokens, so that beginnings agree often."""
    length = draw(st.integers(1, 10))
    ids = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    first_target = draw(st.integers(1, length))
    return Example(tuple(ids), tuple(i >= first_target for i in range(length)), "x")


rows_of = st.lists(examples(), min_size=1, max_size=6)


def path_of(segments, row, index):
    """Tokens of an example, read along its segments from the beginning."""
    own = next(s for s in segments if not s.shared and s.example == index)
    chain = [own]
    while chain[-1].parent >= 0:
        chain.append(segments[chain[-1].parent])
    places = [(s, place) for s in reversed(chain) for place in range(s.first, s.last)]
    return [(row[s.example].input_ids[place], place) for s, place in places]


@given(rows_of)
def test_every_example_reads_as_it_stands(row):
    segments = segments_of(row)
    for index, example in enumerate(row):
        expected = list(zip(example.input_ids, range(example.num_tokens), strict=True))
        assert path_of(segments, row, index) == expected


@given(rows_of)
def test_parents_come_first_and_no_segment_is_empty(row):
    for number, segment in enumerate(segments_of(row)):
        assert -1 <= segment.parent < number
        assert segment.first < segment.last


@given(rows_of)
def test_targets_and_what_predicts_them_are_never_shared(row):
    for segment in segments_of(row):
        if segment.shared:
            targets = row[segment.example].targets
            assert not any(targets[: segment.last + 1])


@given(rows_of)
def test_agreements_are_the_tokens_that_two_may_share(row):
    found = agreements(row)
    assert found.shape == (len(row), len(row))
    for i, one in enumerate(row):
        for j, other in enumerate(row):
            limit = min(num_shareable(one), num_shareable(other))
            pairs = list(zip(one.input_ids[:limit], other.input_ids[:limit], strict=True))
            agreed = next((at for at, (a, b) in enumerate(pairs) if a != b), limit)
            assert found[i, j] == agreed


def test_a_beginning_in_two_levels():
    system, task = (1, 2, 3), (4, 5)
    row = [
        Example((*system, *task, 6, 7), (*[False] * 6, True), "a"),
        Example((*system, *task, 8, 9), (*[False] * 6, True), "b"),
        Example((*system, 10, 11), (*[False] * 4, True), "c"),
    ]
    found = [(s.first, s.last, s.parent, s.shared) for s in segments_of(row)]
    assert found == [
        (0, 3, -1, True),
        (3, 5, 0, True),
        (5, 7, 1, False),
        (5, 7, 1, False),
        (3, 5, 0, False),
    ]
