"""Successive halving with a made-up training, so that who goes on is known."""

import json
from types import SimpleNamespace

import pytest

from ince.errors import AdapterError, DiskFullError, InterruptedRunError, TrainingError
from ince.search.halving import plan_rungs
from ince.search.rounds import Outcome, run_rounds
from ince.search.sweep_state import SweepState


class PowerGoneError(BaseException):
    """Stands for the power going off: nothing is caught and nothing is said."""


def candidate(number):
    return SimpleNamespace(
        name=f"r={number}",
        values={"lora.r": str(number)},
        recipe=SimpleNamespace(to_yaml=lambda: f"lora: {{r: {number}}}\n"),
    )


class Trainer:
    """Loss is the candidate's number, better for longer; some fail."""

    def __init__(self, failing=None, at=None):
        self.calls, self.failing, self.at = [], failing or {}, at

    def __call__(self, one, end):
        self.calls.append((one.name, end))
        if self.at is not None and len(self.calls) == self.at[0]:
            raise self.at[1]
        if one.name in self.failing:
            raise self.failing[one.name]
        number = int(one.name.partition("=")[2])
        return Outcome(number + 1 / end, end, 0.5, 100.0, end / 10, 10**9 + number)


def begin(folder, num=9, steps=90, eta=3):
    candidates = [candidate(number) for number in range(num)]
    rungs = plan_rungs(num, eta=eta, shortest_steps=steps, min_steps=5)
    state = SweepState.create(
        folder,
        candidates,
        identity={"candidates": "x"},
        recipe="recipe.yaml",
        eta=eta,
        min_steps=5,
        rungs=rungs,
        num_steps=[steps] * num,
        remarks=[],
    )
    return candidates, state


def saved(folder):
    return json.loads((folder / "sweep.json").read_text("utf-8"))


def statuses(folder):
    return [each["status"] for each in saved(folder)["candidates"]]


def test_the_better_third_goes_on_and_the_best_to_the_end(tmp_path):
    candidates, state = begin(tmp_path)
    trainer, lines = Trainer(), []
    run_rounds(candidates, state, trainer, say=lines.append)
    assert trainer.calls == [
        *[(f"r={n}", 10) for n in range(9)],
        *[(f"r={n}", 30) for n in range(3)],
        ("r=0", 90),
    ]
    content = saved(tmp_path)
    assert content == state.content
    assert (content["status"], content["best"]) == ("done", "r=0")
    assert statuses(tmp_path) == ["done", *["stopped"] * 8]
    assert content["candidates"][0]["losses"] == [1 / 10, 1 / 30, 1 / 90]
    assert content["candidates"][2]["losses"] == [2 + 1 / 10, 2 + 1 / 30]
    assert content["candidates"][2]["steps"] == 30
    assert (tmp_path / "best.yaml").read_text("utf-8") == "lora: {r: 0}\n"
    assert lines[0] == "rung 1 of 3, 1 of 9: r=0, to step 10 of 90"
    assert "rung 3 of 3, 1 of 1: r=0, to step 90 of 90" in lines[-2]
    assert "held-out loss 0.0111 after step 90" in lines[-1]


@pytest.mark.parametrize("at", range(1, 14))
def test_killed_anywhere_it_goes_on_and_ends_alike(tmp_path, at):
    whole, _ = tmp_path / "whole", tmp_path / "cut"
    candidates, state = begin(tmp_path / "whole")
    run_rounds(candidates, state, Trainer(), say=lambda _: None)
    candidates, state = begin(tmp_path / "cut")
    with pytest.raises(PowerGoneError):
        run_rounds(candidates, state, Trainer(at=(at, PowerGoneError())), say=lambda _: None)
    again = SweepState.open(tmp_path / "cut", identity={"candidates": "x"})
    trainer = Trainer()
    run_rounds(candidates, again, trainer, say=lambda _: None)
    assert len(trainer.calls) == 13 - (at - 1)
    expected, found = saved(whole), saved(tmp_path / "cut")
    for content in (expected, found):
        del content["created"], content["updated"]
    assert found == expected


@pytest.mark.parametrize("stop", [InterruptedRunError("stopped"), KeyboardInterrupt()])
def test_interrupted_it_says_so_and_what_was_done_is_kept(tmp_path, stop):
    candidates, state = begin(tmp_path)
    with pytest.raises(InterruptedRunError, match="sweep was stopped") as caught:
        run_rounds(candidates, state, Trainer(at=(5, stop)), say=lambda _: None)
    assert "same command again" in caught.value.do
    content = saved(tmp_path)
    assert content["status"] == "interrupted"
    assert [len(each["losses"]) for each in content["candidates"]] == [1] * 4 + [0] * 5
    assert content["candidates"][4]["starts"] == 0


def test_who_fails_is_recorded_and_the_others_go_on(tmp_path):
    candidates, state = begin(tmp_path)
    failing = {
        "r=0": TrainingError("loss is not finite", got="nan"),
        "r=1": MemoryError("no room\nat all"),
        "r=4": AdapterError("no such module"),
    }
    lines = []
    run_rounds(candidates, state, Trainer(failing), say=lines.append)
    content = saved(tmp_path)
    assert content["best"] == "r=2"
    assert statuses(tmp_path)[:5] == ["failed", "failed", "done", "stopped", "failed"]
    assert content["candidates"][0]["error"] == {
        "type": "TrainingError",
        "what": "loss is not finite",
        "got": "nan",
    }
    assert content["candidates"][1]["error"]["what"] == "no room"
    assert "  r=4 failed: no such module" in lines


def test_a_finalist_that_fails_leaves_the_best_of_the_rung_before(tmp_path):
    candidates, state = begin(tmp_path)

    class Late(Trainer):
        def __call__(self, one, end):
            if end == 90:
                raise TrainingError("diverged")
            return super().__call__(one, end)

    run_rounds(candidates, state, Late(), say=lambda _: None)
    content = saved(tmp_path)
    assert content["best"] == "r=0"
    assert content["status"] == "done"
    assert "no candidate was trained to the end" in content["remarks"][0]


def test_a_held_out_loss_that_is_not_finite_is_a_failure(tmp_path):
    candidates, state = begin(tmp_path, num=2)

    def train(one, end):
        loss = float("nan") if one.name == "r=0" else 1.0
        return Outcome(loss, end, float("inf"), 1.0, 1.0, 1)

    run_rounds(candidates, state, train, say=lambda _: None)
    assert saved(tmp_path)["best"] == "r=1"
    assert saved(tmp_path)["candidates"][1]["train_loss"] is None


def test_when_all_fail_the_sweep_failed(tmp_path):
    candidates, state = begin(tmp_path, num=3)
    failing = {f"r={n}": TrainingError("diverged") for n in range(3)}
    with pytest.raises(TrainingError, match="every candidate") as caught:
        run_rounds(candidates, state, Trainer(failing), say=lambda _: None)
    assert "r=0: diverged" in str(caught.value)
    assert saved(tmp_path)["status"] == "failed"
    assert not (tmp_path / "best.yaml").exists()


def test_a_full_disk_is_no_candidates_fault(tmp_path):
    candidates, state = begin(tmp_path)
    with pytest.raises(DiskFullError):
        run_rounds(candidates, state, Trainer(at=(2, DiskFullError("full"))), say=lambda _: None)
    assert "failed" not in statuses(tmp_path)


def test_who_takes_the_process_down_three_times_is_left_out(tmp_path):
    candidates, state = begin(tmp_path, num=3)
    for _ in range(3):
        with pytest.raises(PowerGoneError):
            run_rounds(candidates, state, Trainer({"r=1": PowerGoneError()}), say=lambda _: None)
        state = SweepState.open(tmp_path, identity={"candidates": "x"})
    trainer = Trainer({"r=1": PowerGoneError()})
    run_rounds(candidates, state, trainer, say=lambda _: None)
    assert statuses(tmp_path) == ["done", "failed", "stopped"]
    assert "3 times" in saved(tmp_path)["candidates"][1]["error"]["what"]
