"""The checks find each fault that they are for, made on purpose."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.data.batch import IGNORED
from ince.data.collation import collate
from ince.data.contract import check_batch, check_example
from ince.data.example import Example
from ince.data.packing import Row, pack_rows
from ince.errors import DataError, ProofError, TemplateError

STOP = 2
SYSTEM = (5, 6, 7, 8)


def chat(number, num_reply=3):
    """A system message that all share, a question, a reply and its stop."""
    ids = (*SYSTEM, 20 + number, 40 + number, *range(60, 60 + num_reply), STOP)
    targets = (*[False] * 6, *[True] * (num_reply + 1))
    return Example(ids, targets, f"line {number}", stops=(len(ids) - 1,))


@pytest.fixture
def rows():
    packed = pack_rows([chat(i, 1 + i % 4) for i in range(9)], range(9), 32)
    assert len(packed) > 1
    return packed


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (Example((1, 2), (False, False), "line 3"), DataError, "no token"),
        (Example((1, 2), (True, True), "line 3"), DataError, "the first token"),
        (Example((1, 2), (False,), "line 3"), DataError, "of each token"),
        (Example((1, 2, 3), (False, True, False), "line 3", stops=(2,)), TemplateError, "stop"),
        (Example((1, 2, 3), (False, True, True), "line 3", stops=(3,)), TemplateError, "stop"),
    ],
)
def test_an_example_that_breaks_the_contract_is_named(example, error, message):
    with pytest.raises(error, match=f"{message}[^$]*line 3"):
        check_example(example)


def test_a_good_example_passes():
    check_example(chat(1))


def without_label(batch, place):
    labels = batch.labels.clone()
    labels[place] = IGNORED
    return replace(batch, labels=labels, num_targets=batch.num_targets)


def moved_stop(batch):
    """A reply learns a word of the question instead of its stop."""
    labels = batch.labels.clone()
    place = int((batch.input_ids[0] == STOP).nonzero()[0])
    first = next(i for i in range(place, 0, -1) if labels[0, i] == IGNORED)
    labels[0, place], labels[0, first] = IGNORED, batch.input_ids[0, first]
    return replace(batch, labels=labels)


def shifted_labels(batch):
    labels = torch.full_like(batch.labels, IGNORED)
    labels[:, :-1] = batch.labels[:, 1:]
    return replace(batch, labels=labels)


def positions_that_run_on(batch):
    running = torch.arange(batch.input_ids.shape[1]).expand_as(batch.position_ids)
    return replace(batch, position_ids=running * (batch.segment_ids != 0))


def neighbors_seen(batch):
    return replace(batch, sees=torch.ones_like(batch.sees))


def beginnings_not_seen(batch):
    size = batch.sees.shape[-1]
    return replace(batch, sees=torch.eye(size, dtype=torch.bool).expand_as(batch.sees))


def miscounted(batch):
    return replace(batch, num_targets=batch.num_targets + 1)


def first_of_row(batch):
    labels = batch.labels.clone()
    labels[0, int((labels[0] != IGNORED).nonzero()[0])] = IGNORED
    labels[0, 0] = batch.input_ids[0, 0]
    return replace(batch, labels=labels)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda batch: without_label(batch, batch.labels != IGNORED), "labels were lost"),
        (lambda batch: without_label(batch, batch.labels == STOP), "labels were lost"),
        (miscounted, "labels were lost"),
        (shifted_labels, "a label is not its token"),
        (first_of_row, "a row begins with a target"),
        (moved_stop, "does not learn its stop token"),
        (positions_that_run_on, "does not see itself and nothing else"),
        (neighbors_seen, "does not see itself and nothing else"),
        (beginnings_not_seen, "does not see itself and nothing else"),
    ],
)
def test_each_fault_of_a_batch_is_found(rows, fault, message):
    batch = collate(rows, STOP)
    check_batch(batch, rows)
    with pytest.raises(ProofError, match=message) as caught:
        check_batch(fault(batch), rows)
    assert "line" in (caught.value.where or "")
    assert caught.value.exit_code == 3


def test_a_target_behind_another_example_is_found():
    """As packers do that forget to mask the first token of a document."""
    row = Row((Example((3, 4), (False, True), "a"), Example((5, 6, 7), (False, True, False), "b")))
    batch = collate([row], 0)
    labels = batch.labels.clone()
    labels[0, 2], labels[0, 3] = 5, IGNORED
    with pytest.raises(ProofError, match="does not follow its own context"):
        check_batch(replace(batch, labels=labels), [row])


def test_a_stop_in_a_shared_beginning_is_found():
    """Stops are targets, so sharing one takes an example that contradicts itself."""
    both = [
        Example((3, STOP, 5, tail), (False, False, False, True), "a", stops=(1,)) for tail in (6, 7)
    ]
    with pytest.raises(ProofError, match="stop token"):
        collate([Row(tuple(both))], 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(32, 64))
def test_what_packing_makes_of_good_examples_passes(replies, max_length):
    examples = [chat(number, num_reply) for number, num_reply in enumerate(replies)]
    rows = pack_rows(examples, range(len(examples)), max_length)
    batch = collate(rows, STOP)
    assert int((batch.labels == STOP).sum()) == len(examples)
    assert batch.num_targets == sum(example.num_targets for example in examples)
