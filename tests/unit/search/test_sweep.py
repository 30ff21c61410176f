"""Sweeps over a model that is there: runs, folders, and results equal to the bit."""

import io
import json

import pytest
from rich.console import Console

from ince.errors import ConfigError, DataError, InterruptedRunError, OutputError
from ince.recipe import load_recipe
from ince.recipe.run import run_recipe
from ince.search import Sweep, build_candidates, choose_values, parse_axes
from ince.search.candidate import CandidateTrainer
from ince.search.rounds import Outcome

QUIET = Console(quiet=True)


@pytest.fixture
def sweep(read, tmp_path):
    """A function that makes the sweep of these arguments."""

    def make(*arguments, folder="sweep", **options):
        axes, fixed = parse_axes(arguments)
        candidates = build_candidates(
            axes,
            choose_values(axes),
            lambda more: read([*fixed, *more]),
            folder=tmp_path / folder,
            where="recipe.yaml",
        )
        settings = {"eta": 3, "min_steps": 1} | options
        return Sweep(candidates, tmp_path / folder, "recipe.yaml", **settings)

    return make


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def adapter_of(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_best_is_the_run_that_it_would_have_been_alone(sweep, read, tmp_path):
    """Stopping at rungs is an interruption: schedule, data and dropout are those of the whole."""
    state = sweep("train.lr=1e-5,5e-3,1e-4", "train.seed=3").run(console=QUIET)
    assert state.content["best"] == "lr=5e-3"
    assert [each["status"] for each in state.candidates] == ["stopped", "done", "stopped"]
    assert [each["steps"] for each in state.candidates] == [3, 9, 3]
    folder = tmp_path / "sweep" / "lr=5e-3"
    alone = tmp_path / "alone"
    run_recipe(read(["train.lr=5e-3", "train.seed=3", f"output={alone}"]), console=QUIET)
    assert adapter_of(folder) == adapter_of(alone)
    ours, theirs = (
        [(line["step"], line["loss"], line["lr"]) for line in log_of(each) if "loss" in line]
        for each in (folder, alone)
    )
    assert ours == theirs
    assert [line["step"] for line in log_of(folder) if "eval_loss" in line] == [3, 9]
    assert state.candidates[1]["losses"][-1] == log_of(alone)[-1]["eval_loss"]


def test_the_best_recipe_goes_on_to_measure_and_prove_it(sweep, tmp_path):
    sweep("train.lr=1e-5,2e-2", "train.max_steps=3").run(console=QUIET)
    best = tmp_path / "sweep" / "best.yaml"
    recipe = load_recipe(best)
    assert recipe.output_folder == tmp_path / "sweep" / "lr=2e-2"
    before = adapter_of(recipe.output_folder)
    record = run_recipe(recipe, console=QUIET)
    assert record["status"] == "done"
    assert record["proofs"]
    assert adapter_of(recipe.output_folder) == before
    # What lost can be gone on with, too.
    record = run_recipe(load_recipe(tmp_path / "sweep" / "lr=1e-5" / "recipe.yaml"), console=QUIET)
    assert (record["status"], record["training"]["steps"]) == ("done", 3)


def test_stopped_by_hand_it_goes_on(sweep, tmp_path, monkeypatch):
    arguments = ("train.lr=1e-5,2e-2", "train.max_steps=3")
    whole = sweep(*arguments, folder="whole").run(console=QUIET)
    train, calls = CandidateTrainer._train, []

    def stopped(self, candidate, record, stop_after):
        calls.append(candidate.name)
        if len(calls) == 2:
            raise InterruptedRunError("stopped after step 1 of 3")
        return train(self, candidate, record, stop_after)

    monkeypatch.setattr(CandidateTrainer, "_train", stopped)
    with pytest.raises(InterruptedRunError, match="the sweep was stopped"):
        sweep(*arguments).run(console=QUIET)
    monkeypatch.setattr(CandidateTrainer, "_train", train)
    state = sweep(*arguments).run(console=QUIET)
    assert [each["losses"] for each in state.candidates] == [
        each["losses"] for each in whole.candidates
    ]
    assert adapter_of(tmp_path / "sweep" / "lr=2e-2") == adapter_of(tmp_path / "whole" / "lr=2e-2")


def test_killed_between_training_and_writing_it_down_the_loss_is_in_the_log(sweep, read, tmp_path):
    one = sweep("train.lr=1e-5,2e-2")
    trainer = CandidateTrainer(QUIET, splits=_splits())
    first = trainer(one.candidates[0], 4)
    again = trainer(one.candidates[0], 4)
    assert again.loss == first.loss
    log = tmp_path / "sweep" / "lr=1e-5" / "log.jsonl"
    lines = [line for line in log.read_text("utf-8").splitlines() if "eval_loss" not in line]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert trainer(one.candidates[0], 4).loss == pytest.approx(first.loss, abs=1e-6)
    assert isinstance(first, Outcome)
    assert first.steps == 4
    assert first.peak_bytes > 2**20


def _splits():
    from ince.search.splits import KnownSplits

    return KnownSplits()


def test_a_candidate_that_cannot_train_is_recorded_and_the_others_go_on(sweep, tmp_path):
    state = sweep("lora.target_modules=[q_proj],[nowhere]", "train.max_steps=2").run(console=QUIET)
    good, bad = state.candidates
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert bad["error"]["type"] == "ConfigError"
    record = json.loads((tmp_path / "sweep" / bad["name"] / "run.json").read_text("utf-8"))
    assert record["status"] == "failed"
    assert state.content["best"] == good["name"]


def test_a_done_sweep_is_returned_and_another_one_refused(sweep, tmp_path):
    arguments = ("train.lr=1e-5,2e-2", "train.max_steps=2")
    state = sweep(*arguments).run(console=QUIET)
    console = Console(file=io.StringIO(), width=200)
    again = sweep(*arguments).run(console=console)
    assert again.content == state.content
    assert "is done already" in console.file.getvalue()
    with pytest.raises(OutputError, match="another sweep") as caught:
        sweep("train.lr=1e-5,3e-2", "train.max_steps=2").run(console=QUIET)
    assert "other candidates" in str(caught.value)
    with pytest.raises(OutputError, match="other halving"):
        sweep(*arguments, eta=2).run(console=QUIET)
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', "utf-8")
    with pytest.raises(OutputError, match="other data"):
        sweep(*arguments).run(console=QUIET)


def test_the_plan_is_known_before_anything_is_written(sweep, tmp_path):
    plan = sweep("train.lr=1,2,3,4,5,6,7,8,9", "train.batch_tokens=128").plan(console=QUIET)
    assert [(rung.num_candidates, rung.steps(9)) for rung in plan.rungs] == [(9, 1), (3, 3), (1, 9)]
    assert plan.num_steps == [9] * 9
    assert plan.cost == pytest.approx(1 + 2 / 3 + 2 / 3)
    assert not (tmp_path / "sweep").exists()


def test_candidates_of_other_lengths_are_cut_at_the_same_share(sweep):
    plan = sweep("train.max_steps=9,5,7").plan(console=QUIET)
    assert plan.num_steps == [9, 5, 7]
    assert [plan.rungs[0].steps(n) for n in plan.num_steps] == [3, 2, 3]


def test_what_a_reader_should_know_is_remarked(sweep):
    plan = sweep("data.loss_on=assistant,all").plan(console=QUIET)
    assert "not over the same targets" in plan.remarks[0]
    plan = sweep("train.lr=1e-4,1e-3", min_steps=5).plan(console=QUIET)
    assert "every candidate is trained whole" in plan.remarks[0]


def test_without_held_out_rows_there_is_no_sweep(sweep, tmp_path):
    for act in (lambda s: s.plan(console=QUIET), lambda s: s.run(console=QUIET)):
        with pytest.raises(ConfigError, match="needs held-out data") as caught:
            act(sweep("train.lr=1e-4,1e-3", "data.eval=null"))
        assert "data.eval" in str(caught.value)
    assert not (tmp_path / "sweep").exists()


def test_bad_data_end_it_before_it_begins(sweep, tmp_path):
    one = sweep("train.lr=1e-4,1e-3")
    (tmp_path / "train.jsonl").write_text('{"nothing": 1}\n', "utf-8")
    with pytest.raises(DataError):
        one.run(console=QUIET)
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_data_are_encoded_once(sweep, monkeypatch):
    from ince.search import splits

    read, paths = splits.load_split, []

    def counted(path, *rest, **more):
        paths.append(path.rpartition("/")[2])
        return read(path, *rest, **more)

    monkeypatch.setattr(splits, "load_split", counted)
    sweep("train.lr=1e-5,2e-2", "train.max_steps=2").run(console=QUIET)
    assert paths == ["train.jsonl", "eval.jsonl"]
