import math
import statistics
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import TrainingError
from ince.train.loss_guard import is_usable, note_loss, note_skipped
from ince.train.state import TrainState
from ince.train.step import StepGradient


def gradient(loss, *, norm=1.0, sources=("a:1", "a:2")):
    return StepGradient(loss, norm, 10, 5, tuple(sources), tuple(sources))


def poison(model, steps, watcher):
    """Make the model's output infinite in the forwards of `steps`, counted from 1.

    What is tried before the first step does not count.
    """
    calls = [0]

    def hook(module, inputs, output):
        calls[0] += watcher.begun is not None
        return output * math.inf if calls[0] in steps else output

    model.get_base_model().model.norm.register_forward_hook(hook)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_loss_or_a_gradient_that_is_not_finite_is_not_usable(wrong):
    assert is_usable(gradient(1.0))
    assert not is_usable(gradient(wrong))
    assert not is_usable(gradient(1.0, norm=wrong))


def test_a_step_that_is_not_finite_changes_nothing_but_the_place_in_the_data(tmp_path, small_run):
    """The update, the moments and their count of steps are those of a run without that step."""
    seen = {}
    model = small_run.model(dropout=0.0)
    watcher = small_run.Watcher()
    poison(model, {3}, watcher)

    def remember(report):
        seen[report.step] = small_run.trained(model)

    watcher.stepped = remember
    _, result = small_run(tmp_path, watcher, model=model, dropout=0.0, max_steps=4)
    assert all(torch.equal(seen[2][name], seen[3][name]) for name in seen[2])
    assert any(not torch.equal(seen[3][name], seen[4][name]) for name in seen[3])
    assert (result.steps, result.num_skipped) == (4, 1)
    from ince.train.checkpoint import latest_checkpoint

    saved = latest_checkpoint(tmp_path, warn=pytest.fail)
    counts = {t.item() for n, t in saved.tensors["optimizer"].items() if n.endswith(".step")}
    assert counts == {3.0}


def test_a_skipped_step_stands_in_the_log_with_its_rows_and_is_said_once(tmp_path, small_run):
    model = small_run.model(dropout=0.0)
    watcher = small_run.Watcher()
    poison(model, {2, 4}, watcher)
    _, result = small_run(tmp_path, watcher, model=model, dropout=0.0, max_steps=5)
    lines = small_run.log(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["loss"] is None for line in steps] == [False, True, False, True, False]
    assert [line.get("skipped", False) for line in steps] == [False, True, False, True, False]
    events = [line for line in lines if line.get("event") == "skipped"]
    assert [event["step"] for event in events] == [2, 4]
    assert all(source.startswith("data.jsonl:") for e in events for source in e["sources"])
    assert sum("passed over" in line for line in watcher.lines) == 1
    assert [report.num_skipped for report in watcher.reports] == [0, 1, 1, 2, 2]
    assert result.num_targets == sum(r.num_targets for r in watcher.reports if not r.skipped)
    assert math.isfinite(result.final_loss)


def test_too_many_in_a_row_end_the_run_and_name_the_rows(tmp_path, small_run):
    model = small_run.model()
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(float("nan"))
    before = small_run.trained(model)
    with pytest.raises(TrainingError, match=r"(?s)step 3: 3 steps in a row.*data.jsonl:") as caught:
        small_run(tmp_path, model=model, max_skipped_steps=3)
    assert "max_skipped_steps" in str(caught.value)
    after = small_run.trained(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_row_of_skipped_steps_is_counted_over_a_resume():
    """A run that is started again and again must not go on forever."""
    state = TrainState("d")
    note_skipped(state, gradient(math.nan, sources=["a:1"]), max_in_a_row=3)
    note_skipped(state, gradient(math.nan, sources=["a:2"]), max_in_a_row=3)
    state = TrainState(**asdict(state))
    with pytest.raises(TrainingError, match=r"(?s)a:1, a:2, a:3"):
        note_skipped(state, gradient(math.nan, sources=["a:3"]), max_in_a_row=3)


def test_a_good_step_ends_a_row():
    state = TrainState("d")
    for _ in range(20):
        note_skipped(state, gradient(math.nan), max_in_a_row=2)
        note_loss(state, gradient(1.0))
    assert state.num_skipped == 20


def test_only_the_forward_that_went_wrong_is_named(tmp_path, small_run):
    model = small_run.model(dropout=0.0)
    watcher = small_run.Watcher()
    poison(model, {2}, watcher)
    small_run(
        tmp_path,
        watcher,
        model=model,
        dropout=0.0,
        max_steps=1,
        batch_tokens=160,
        micro_batch_tokens=32,
    )
    (event,) = [line for line in small_run.log(tmp_path) if "event" in line]
    assert 0 < len(event["sources"]) < 6


def test_a_spike_is_noted_with_its_rows_and_a_run_in_no_hurry_has_none():
    state = TrainState("d")
    for i in range(30):
        assert note_loss(state, gradient(2.0 + 0.1 * (-1) ** i)) is None
    event = note_loss(state, gradient(9.0, sources=["rows.jsonl:7"]))
    assert event["event"] == "spike"
    assert event["spike_loss"] == 9.0
    assert 2.1 < event["limit"] < 9.0
    assert event["sources"] == ["rows.jsonl:7"]
    assert note_loss(state, gradient(2.1)) is None
    assert state.num_spikes == 1


def test_the_first_losses_are_no_spikes_whatever_they_are():
    state = TrainState("d")
    assert [note_loss(state, gradient(10.0**i)) for i in range(16)] == [None] * 16


def test_losses_all_alike_leave_room_for_a_tenth():
    state = TrainState("d")
    for _ in range(20):
        note_loss(state, gradient(1.0))
    assert note_loss(state, gradient(1.09)) is None
    assert note_loss(state, gradient(1.2)) is not None


@given(st.lists(st.floats(0, 20), min_size=17, max_size=90), st.integers(1, 89))
def test_spikes_are_the_same_ones_when_the_run_is_resumed_anywhere(losses, at):
    whole, cut = TrainState("d"), TrainState("d")
    expected = [note_loss(whole, gradient(loss)) for loss in losses]
    found = [note_loss(cut, gradient(loss)) for loss in losses[:at]]
    cut = TrainState(**asdict(cut))
    found += [note_loss(cut, gradient(loss)) for loss in losses[at:]]
    assert found == expected
    for i, event in enumerate(expected):
        if event is not None:  # never below the median of what came before
            assert losses[i] > statistics.median(losses[max(0, i - 64) : i])


def test_a_spike_in_a_run_is_logged_and_said_once(tmp_path, small_run):
    model = small_run.model(dropout=0.0)
    watcher = small_run.Watcher()
    loud = [0]

    def hook(module, inputs, output):
        loud[0] += watcher.begun is not None
        return output * (60 if loud[0] in (20, 22) else 1)

    model.get_base_model().model.norm.register_forward_hook(hook)
    _, result = small_run(
        tmp_path, watcher, model=model, dropout=0.0, lr=1e-5, epochs=9, max_steps=24
    )
    events = [line for line in small_run.log(tmp_path) if line.get("event") == "spike"]
    assert [event["step"] for event in events] == [20, 22]
    assert result.num_spikes == 2
    assert sum("the loss jumped" in line for line in watcher.lines) == 1
