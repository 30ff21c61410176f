import json
import shutil

import pytest

from ince.errors import InterruptedRunError, TrainingError
from ince.search.candidate import CandidateTrainer
from ince.search.rounds import Outcome


@pytest.fixture
def project(tmp_path, rows, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(rows, tmp_path / "eval.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{base: {model_folder}, quantize: null, compute_dtype: float32}}\n"
        "lora: {r: 2}\n"
        "data: {train: rows.jsonl, eval: eval.jsonl, max_length: 64}\n"
        "train: {batch_tokens: 128, epochs: 5}\n"
        "evaluate: {num_samples: 0}\n"
        "output: runs/mine\n"
    )
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Candidates that train at once: the larger r the better."""
    calls = []

    def train(self, candidate, stop_after):
        calls.append((candidate.name, stop_after))
        if candidate.recipe.lora.r == 5:
            raise TrainingError("diverged")
        if candidate.recipe.lora.r == 6 and len(calls) == 3:
            raise InterruptedRunError("stopped")
        loss = 1 / candidate.recipe.lora.r
        return Outcome(loss, stop_after, loss, 100.0, 1.0, 2**30)

    monkeypatch.setattr(CandidateTrainer, "__call__", train)
    return calls


def test_a_sweep_from_the_command_to_the_best_run(command, project):
    code, out, err = command(
        *("sweep", "recipe.yaml", "train.lr=1e-5,2e-2", "--budget", "3", "--min-steps", "1")
    )
    assert code == 0, err
    folder = project / "runs/mine-sweep"
    assert {path.name for path in folder.iterdir()} == {
        "best.yaml",
        "lr=1e-5",
        "lr=2e-2",
        "sweep.html",
        "sweep.json",
    }
    assert "★ 1" in out
    assert "best       lr=2e-2" in out
    assert "rung 1 of 2, 2 of 2: lr=2e-2, to step 1 of 3" in err
    code, out, err = command("train", "runs/mine-sweep/best.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["record"]["training"]["steps"] == 3
    assert not (project / "runs/mine").exists()


def test_json_has_the_whole_state(command, project, trained):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    code, out, _ = command(
        *("sweep", "recipe.yaml", "lora.r=2,3,5", "train.seed=1", "--min-steps", "1"),
        *("--out", "s", "--plot", "s.png", "--json"),
    )
    found = json.loads(out)
    assert code == 0
    assert (found["sweep"], found["page"], found["plot"]) == ("s", "s/sweep.html", "s.png")
    assert found["best"] == "r=3"
    assert [each["status"] for each in found["candidates"]] == ["stopped", "done", "failed"]
    assert (project / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_says_what_would_be_done(command, project, trained):
    arguments = ("sweep", "recipe.yaml", "lora.r=2,3,4", "train.lr=1e-4,1e-3,1e-2", "--budget", "9")
    code, out, _ = command(*arguments, "--min-steps", "1", "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0
    assert [rung["num_candidates"] for rung in found["rungs"]] == [9, 3, 1]
    assert found["candidates"][0]["name"] == "r=2,lr=1e-4"
    assert found["cost"] < 9
    code, out, _ = command(*arguments, "--dry-run", "--random", "4")
    assert code == 0
    assert "candidates 4" in out
    assert "instead of 4" in out
    assert "every candidate is trained whole" in out
    assert trained == []
    assert not (project / "runs").exists()


def test_stopped_it_shows_what_was_reached_and_goes_on(command, project, trained):
    arguments = ("sweep", "recipe.yaml", "lora.r=2,3,6", "--min-steps", "1")
    code, out, err = command(*arguments)
    assert code == 130
    assert "run the same command again" in err
    assert "0.5000" in out
    assert (project / "runs/mine-sweep/sweep.html").is_file()
    code, out, _ = command(*arguments)
    assert code == 0
    assert "best       r=6" in out
    assert [name for name, _ in trained] == ["r=2", "r=3", "r=6", "r=6", "r=6"]


def test_when_all_fail_it_is_a_failure(command, project, trained):
    code, out, err = command("sweep", "recipe.yaml", "lora.r=5", "train.seed=1,2")
    assert code == 1
    assert "every candidate of the sweep failed" in err
    assert "diverged" in err
    assert "sweep.html" not in out


def test_another_sweeps_folder_is_not_touched_nor_shown(command, project, trained):
    command("sweep", "recipe.yaml", "lora.r=2,3")
    code, out, err = command("sweep", "recipe.yaml", "lora.r=2,4")
    assert code == 2
    assert "another sweep" in err
    assert out == ""
    assert command("sweep", "recipe.yaml", "lora.r=2,4", "--fresh")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "this is one"),
        (("lora.r=8",), "this is one"),
        (("lora.r=8,8",), "one and the same"),
        (("lora.rank=8,16",), "here it is lora.r"),
        (("lora.r=8,x",), "[in r=x]"),
        (("lora.r=8,,16",), "an empty value"),
        (("train.seed=" + ",".join(map(str, range(300))),), "300 candidates"),
        (("lora.r=8,16", "data.eval=null"), "needs held-out data"),
        (("data.eval=a,b",), "cannot be swept"),
        (("train.max_steps=8,16", "--budget", "9"), "given twice"),
        (("lora.r=8,16", "--eta", "1"), "not in the range"),
        (("lora.r=8,16", "--plot", "x.jpg"), "ends in .png"),
        (("lora.r=8,16", "--out", "recipe.yaml"), "not a folder"),
        (("lora.r=8,16", "--random", "1"), "this is one"),
        (("nothing",), "not values for a key"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(command, project, arguments, words):
    code, _, err = command("sweep", "recipe.yaml", *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert not (project / "runs").exists()


def test_no_such_recipe(command, project):
    code, _, err = command("sweep", "recipes.yaml", "lora.r=8,16")
    assert code == 2
    assert "no such recipe" in err
    assert "did you mean 'recipe.yaml'" in err
