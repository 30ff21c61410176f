import json

import pytest

from ince.errors import InterruptedRunError
from ince.recipe import run as recipe_run
from ince.record import RunRecord

RECIPE = "model: {base: b}\ndata: {train: rows.jsonl}\noutput: run\n"


@pytest.fixture
def project(tmp_path, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def calls(project, monkeypatch):
    """What `run_recipe` was asked, with a run that is done at once."""
    asked = []

    def run_recipe(recipe, *, resume, console):
        asked.append((recipe, resume))
        record = RunRecord.create(
            recipe.output_folder, recipe=recipe.to_dict(), recipe_digest=recipe.digest()
        )
        (recipe.output_folder / "recipe.yaml").write_text(recipe.to_yaml())
        (recipe.output_folder / "log.jsonl").write_text('{"step": 1, "loss": 2.5, "lr": 0.001}\n')
        record["training"] = {"steps": 1, "first_loss": 2.5, "final_loss": 1.5}
        record.finish("done")
        return record

    monkeypatch.setattr(recipe_run, "run_recipe", run_recipe)
    return asked


def test_train_runs_the_recipe_and_says_where_the_report_is(command, calls, project):
    code, out, _ = command("train", "recipe.yaml", "train.lr=1e-3", "lora.r=2")
    assert code == 0
    ((recipe, resume),) = calls
    assert (recipe.train.lr, recipe.lora.r, resume) == (1e-3, 2, True)
    assert "run/report.html" in out
    assert (project / "run" / "report.html").is_file()


def test_json_carries_the_record(command, calls):
    code, out, _ = command("train", "recipe.yaml", "--json", "--fresh")
    found = json.loads(out)
    assert code == 0
    assert found["run"] == "run"
    assert found["record"]["status"] == "done"
    assert found["report"].endswith("report.html")
    assert calls[0][1] is False


def test_a_run_folder_is_a_recipe_too(command, calls):
    command("train", "recipe.yaml")
    assert command("train", "run")[0] == 0
    assert calls[0][0].digest() == calls[1][0].digest()
    assert calls[1][0].output == "run"


def test_a_run_goes_on_where_it_is(command, calls, project, monkeypatch):
    command("train", "recipe.yaml")
    (project / "elsewhere").mkdir()
    (project / "run").rename(project / "elsewhere" / "moved")
    monkeypatch.chdir(project / "elsewhere")
    command("train", "moved")
    command("train", "moved", "output=other")
    assert [recipe.output for recipe, _ in calls] == ["run", "moved", "other"]


def test_a_folder_without_a_recipe(command, project):
    (project / "empty").mkdir()
    code, _, err = command("train", "empty")
    assert code == 2
    assert "a folder without a recipe" in err


def test_mistakes_stop_it_before_anything_is_written(command, calls, project):
    code, _, err = command("train", "recipe.yaml", "train.lrr=3", "lora.r=0")
    assert code == 2
    assert "train.lrr" in err
    assert "lora.r" in err
    assert calls == []
    assert not (project / "run").exists()


def test_a_stopped_run_has_a_report_of_what_was_done(command, project, monkeypatch):
    def run_recipe(recipe, *, resume, console):
        record = RunRecord.create(recipe.output_folder, recipe={}, recipe_digest="")
        (recipe.output_folder / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
        record.finish("interrupted")
        raise InterruptedRunError("stopped after step 1 of 9", do="run the same command again")

    monkeypatch.setattr(recipe_run, "run_recipe", run_recipe)
    code, _, err = command("train", "recipe.yaml")
    assert code == 130
    assert "run the same command again" in err
    assert (project / "run" / "report.html").is_file()
