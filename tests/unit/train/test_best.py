import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ince.errors import TrainingError
from ince.train import EarlyStopping, TrainConfig
from ince.train.best import note_evaluation
from ince.train.state import TrainState


def course(losses, **early_stopping):
    """The state after evaluations 10 steps apart, as far as patience lets them come."""
    state = TrainState("d")
    early = EarlyStopping(**early_stopping) if early_stopping else None
    for loss in losses:
        state.step += 10
        note_evaluation(state, loss, early_stopping=early)
        if state.stopped_early:
            break
    return state


def test_the_best_is_the_lowest_and_of_equals_the_first():
    state = course([3.0, 1.0, 2.0, 1.0, 1.5])
    assert (state.best_step, state.best_loss, state.stopped_early) == (20, 1.0, False)


def test_what_is_not_finite_is_never_the_best():
    assert course([math.nan, math.inf]).best_step is None
    assert course([math.nan, 5.0, -math.inf]).best_step == 20
    assert course([math.nan, math.nan], patience=2).stopped_early


@pytest.mark.parametrize(
    ("losses", "settings", "steps"),
    [
        ([3, 2, 2, 2, 1], {"patience": 2}, 40),
        ([3, 2, 2.5, 1.9, 2, 1.8], {"patience": 2}, 60),
        ([3.0, 2.95, 2.9, 2.85, 2.8], {"patience": 2, "min_delta": 0.5}, 30),
        # It creeps, and within the patience it has crept far enough.
        ([3.0, 2.8, 2.6, 2.4, 2.2, 2.0], {"patience": 3, "min_delta": 0.5}, 60),
        ([1, 1], {"patience": 1}, 20),
    ],
)
def test_patience_ends_when_nothing_gained_counts(losses, settings, steps):
    assert course(losses, **settings).step == steps


def test_what_gains_too_little_for_patience_is_the_best_all_the_same():
    state = course([3.0, 2.9, 2.8], patience=9, min_delta=1.0)
    assert (state.best_step, state.evaluations_without_gain) == (30, 2)


@given(st.lists(st.floats(0, 9), min_size=2, max_size=30), st.integers(1, 29))
def test_decisions_are_the_same_when_the_state_is_written_and_read_in_between(losses, at):
    early = EarlyStopping(patience=3, min_delta=0.5)
    whole, cut = TrainState("d"), TrainState("d")
    for i, loss in enumerate(losses):
        if i == at:
            cut = TrainState(**asdict(cut))
        for state in (whole, cut):
            state.step += 1
            note_evaluation(state, loss, early_stopping=early)
    assert whole == cut


# Losses by step: step 4 is the best, and nothing is gained afterwards.
SCRIPT = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5, 10: 2.6}


class Scripted:
    """A watcher, and the held-out losses of a script; may lose power at one of them."""

    def __init__(self, small_run, script, gone_after=None):
        self.watcher = small_run.Watcher()
        self.script, self.gone_after, self.asked = script, gone_after, []
        self.small_run = small_run

    def evaluate(self):
        step = self.watcher.reports[-1].step
        self.asked.append(step)
        if step == self.gone_after:
            raise self.small_run.PowerGone
        return self.script[step]


def scripted(small_run, folder, *, script=SCRIPT, gone_after=None, **changes):
    told = Scripted(small_run, script, gone_after)
    settings = {"max_steps": 10, "eval_every": 2, "save_every": 50} | changes
    model, result = small_run(folder, told.watcher, evaluate=told.evaluate, **settings)
    return small_run.trained(model), result, told


def adapter_after(small_run, folder, step):
    """The adapter after `step` of the ten steps."""
    model, _ = small_run(folder, max_steps=10, stop_after=step)
    return small_run.trained(model)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_result_is_the_best_adapter(tmp_path, small_run):
    found, result, _ = scripted(small_run, tmp_path / "run")
    assert equal(found, adapter_after(small_run, tmp_path / "four", 4))
    assert (result.adapter_step, result.best_step, result.best_loss) == (4, 4, 1.0)
    assert (result.steps, result.stopped_early) == (10, False)


def test_the_last_adapter_is_the_result_where_the_best_is_not_kept(tmp_path, small_run):
    found, result, _ = scripted(small_run, tmp_path / "run", keep_best=False)
    assert equal(found, adapter_after(small_run, tmp_path / "ten", 10))
    assert (result.adapter_step, result.best_step) == (10, 4)
    assert {p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")} == {"step-000010"}


def test_patience_ends_the_run_with_the_best_adapter(tmp_path, small_run):
    found, result, told = scripted(small_run, tmp_path / "run", early_stopping={"patience": 2})
    assert equal(found, adapter_after(small_run, tmp_path / "four", 4))
    assert told.asked == [2, 4, 6, 8]
    assert (result.steps, result.adapter_step, result.stopped_early) == (8, 4, True)
    assert any("training ends" in line for line in told.watcher.lines)


@pytest.mark.parametrize("gone_after", [4, 6, 8])
def test_cut_off_while_it_measures_it_decides_the_same(tmp_path, small_run, gone_after):
    """Between a best step and its checkpoint, after it, and where patience runs out."""
    early = {"early_stopping": {"patience": 2}, "keep_checkpoints": 1}
    found, expected, _ = scripted(small_run, tmp_path / "whole", **early)
    with pytest.raises(small_run.PowerGone):
        scripted(small_run, tmp_path / "cut", gone_after=gone_after, **early)
    again, result, _ = scripted(small_run, tmp_path / "cut", **early)
    assert equal(again, found)
    assert (result.adapter_step, result.best_loss) == (expected.adapter_step, expected.best_loss)
    evaluations = [
        [line for line in small_run.log(tmp_path / name) if "eval_loss" in line]
        for name in ("whole", "cut")
    ]
    assert evaluations[0] == evaluations[1]


def test_started_again_after_its_end_it_has_the_same_result(tmp_path, small_run):
    """As it is when the power goes after the last checkpoint, before the adapter is written."""
    early = {"early_stopping": {"patience": 2}}
    found, expected, _ = scripted(small_run, tmp_path, **early)
    again, result, told = scripted(small_run, tmp_path, **early)
    assert equal(again, found)
    assert result == expected
    assert told.asked == []


def test_the_best_checkpoint_outlives_newer_ones(tmp_path, small_run):
    def left(**changes):
        scripted(small_run, tmp_path, save_every=1, **changes)
        return [int(p.name[-6:]) for p in sorted((tmp_path / "checkpoints").glob("step-*"))]

    assert left(keep_checkpoints=2) == [4, 9, 10]


def test_an_older_checkpoint_finds_the_best_that_it_knows(tmp_path, small_run):
    """Of two checkpoints that are kept, the newer may turn out damaged."""
    script = SCRIPT | {8: 0.5}
    changes = {"script": script, "keep_checkpoints": 2, "save_every": 2}
    with pytest.raises(small_run.PowerGone):
        scripted(small_run, tmp_path / "cut", gone_after=10, **changes)
    names = sorted(p.name for p in (tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert names == ["step-000004", "step-000006", "step-000008"]
    (tmp_path / "cut" / "checkpoints" / "step-000008" / "adapter.safetensors").write_bytes(b"")
    # From step 6 on, with another course: step 4, which only the older one names, stays the best.
    again, result, _ = scripted(small_run, tmp_path / "cut", **(changes | {"script": SCRIPT}))
    assert result.adapter_step == 4
    assert equal(again, adapter_after(small_run, tmp_path / "four", 4))


def test_a_best_checkpoint_that_is_damaged_is_said_and_the_last_adapter_is_taken(
    tmp_path, small_run
):
    scripted(small_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000004" / "state.json").unlink()
    found, result, told = scripted(small_run, tmp_path / "run")
    assert result.adapter_step == 10
    assert equal(found, adapter_after(small_run, tmp_path / "ten", 10))
    assert any("step, 4, cannot be used" in line for line in told.watcher.lines)


def test_where_a_sweep_looks_in_nothing_is_decided(tmp_path, small_run):
    script = SCRIPT | {3: 0.1}
    _, part, _ = scripted(small_run, tmp_path, script=script, stop_after=3)
    assert (part.adapter_step, part.best_step) == (3, 2)
    _, result, _ = scripted(small_run, tmp_path, script=script)
    assert result.adapter_step == 4


def test_a_loss_that_is_not_finite_leaves_a_log_that_is_json(tmp_path, small_run):
    _, result, _ = scripted(small_run, tmp_path, script=dict.fromkeys(SCRIPT, math.nan))
    assert "NaN" not in (tmp_path / "log.jsonl").read_text("utf-8")
    assert (result.best_step, result.adapter_step) == (None, 10)


def test_early_stopping_needs_something_to_look_at(tmp_path, small_run):
    with pytest.raises(TrainingError, match=r"data\.eval"):
        small_run(tmp_path, eval_every=2, early_stopping={"patience": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": {"patience": 2}}, "early_stopping needs eval_every"),
        ({"keep_best": True}, "keep_best needs eval_every"),
        ({"eval_every": 5, "early_stopping": {"patience": 0}}, "greater than or equal to 1"),
        ({"eval_every": 5, "early_stopping": {}}, "patience"),
        ({"eval_every": 5, "early_stopping": {"patience": 1, "delta": 1}}, "delta"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


def test_the_best_is_kept_where_there_are_evaluations_unless_told_otherwise():
    assert not TrainConfig().keeps_best
    assert TrainConfig(eval_every=5).keeps_best
    assert not TrainConfig(eval_every=5, keep_best=False).keeps_best
