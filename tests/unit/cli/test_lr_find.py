import json

import pytest

from ince.errors import InterruptedRunError
from ince.search import lr_find as module


@pytest.fixture
def project(tmp_path, rows, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{base: {model_folder}, quantize: null, compute_dtype: float32}}\n"
        "lora: {r: 2}\n"
        "data: {train: rows.jsonl, max_length: 64}\n"
        "train: {batch_tokens: 128}\n"
        "output: runs/mine\n"
    )
    return tmp_path


def test_the_curve_the_suggestion_and_where_the_details_are(command, project):
    code, out, _ = command("lr-find", "recipe.yaml", "--from", "1e-4", "--steps", "12")
    assert code == 0
    assert "suggestion" in out
    assert "┤" in out
    assert "runs/mine-lr-find/lr_find.json" in out
    content = json.loads((project / "runs/mine-lr-find/lr_find.json").read_text())
    assert content["format"] == "ince-lr-find/1"
    assert len(content["points"]) == 12
    assert not (project / "runs/mine").exists()


def test_json_and_picture(command, project):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    code, out, _ = command(
        *("lr-find", "recipe.yaml", "lora.r=3", "--steps", "10", "--to", "1e-2"),
        *("--plot", "lr.png", "--out", "found", "--json"),
    )
    found = json.loads(out)
    assert code == 0
    assert (found["file"], found["plot"]) == ("found/lr_find.json", "lr.png")
    assert found["adapter"]["r"] == 3
    assert found["high"] == 1e-2
    assert (project / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_stopped_it_shows_and_keeps_what_is_known(command, project, monkeypatch):
    train = module._train

    def stopped(recipe, test, folder, console, facts):
        train(recipe, test, folder, console, facts)
        raise InterruptedRunError("stopped after step 10 of 10")

    monkeypatch.setattr(module, "_train", stopped)
    code, out, err = command("lr-find", "recipe.yaml", "--steps", "10", "--out", "found")
    assert code == 130
    assert "stopped by hand" in out
    assert "stopped after step 10 of 10" in err
    assert json.loads((project / "found/lr_find.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "1"), "do not make a range"),
        (("--from", "nan"), "do not make a range"),
        (("--to", "fast"), "not a valid float"),
        (("--steps", "2"), "too few steps"),
        (("--steps", "0"), "not in the range"),
        (("--plot", "x.svg"), "ends in .png"),
        (("train.lrr=1",), "train.lrr"),
        (("--out", "recipe.yaml"), "is a file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(command, project, arguments, words):
    code, _, err = command("lr-find", "recipe.yaml", *arguments)
    assert code == 2
    assert words in err
    assert not (project / "runs").exists()
