"""Work on many rows is done in parts where memory is refused, and gives the same."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.data import Message
from ince.errors import OutOfMemoryError
from ince.infer import Parts, generate
from ince.infer.mode import evaluating
from ince.quant import Linear4bit

REFUSED = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Nothing is held here, and giving it back takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ince.infer.parts._release", lambda: None)
        yield


def fitting(most, seen=None):
    """Work that fits for `most` rows."""

    def work(rows):
        if seen is not None:
            seen.append(len(rows))
        if len(rows) > most:
            raise REFUSED
        return list(rows)

    return work


@given(num=st.integers(1, 40), most=st.integers(1, 45))
def test_every_row_is_done_once_and_in_order(num, most):
    found = list(Parts().of(range(num), fitting(most)))
    assert [row for part in found for row in part] == list(range(num))
    assert len(found) == 1 or most < num


def test_what_was_learnt_is_kept():
    said, seen = [], []
    parts = Parts(what="the held-out loss", say=said.append)
    for _ in range(2):
        list(parts.of(range(16), fitting(5, seen)))
    assert seen == [16, 8, 4, 4, 4, 4, 4, 4, 4, 4]
    assert said[-1] == "memory: the held-out loss was refused more; from here on 4 rows at a time"


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.raises(OutOfMemoryError, match="with one row in a forward") as caught:
        list(Parts().of(range(3), fitting(0)))
    assert "can't allocate memory" in caught.value.got


def test_other_errors_are_not_met_with_smaller_parts():
    calls = []

    def fail(rows):
        calls.append(rows)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Parts().of(range(8), fail))
    assert len(calls) == 1


def test_answers_are_the_same_in_parts(tiny_llama, small_tokenizer, monkeypatch):
    model = tiny_llama()
    asked = [[Message("user", "Why? " * (1 + i % 3))] for i in range(5)]
    whole = generate(model, small_tokenizer, asked, max_new_tokens=4)
    module = sys.modules["ince.infer.generate"]  # the function hides its module
    real = module.decode

    def scarce(model, prompts, **options):
        for step, new in enumerate(real(model, prompts, **options)):
            if len(prompts) > 2 and step == 2:
                raise REFUSED
            yield new

    monkeypatch.setattr(module, "decode", scarce)
    told = []
    found = generate(
        model, small_tokenizer, asked, max_new_tokens=4, progress=lambda *at: told.append(at)
    )
    assert found == whole
    assert told[-1] == (5, 5)
    assert told == sorted(told)


def test_without_memory_for_copies_weights_stay_packed(monkeypatch):
    model = torch.nn.Sequential(*(Linear4bit(64, 64) for _ in range(2)))
    first, second = model

    def refuse():
        raise REFUSED

    monkeypatch.setattr(second, "expand", refuse)
    with evaluating(model, expand=True):
        assert not first.is_expanded
    monkeypatch.setattr(second, "expand", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), evaluating(model, expand=True):
        pass
