"""Bad input at the command line: the right exit code, one clear error, nothing lost.

Each case is what a person really does wrong. Exit codes: 1 failed, 2 the user's input.
"""

import errno
import json
import os

import pytest

from ince.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_llama, small_tokenizer):
    """A working folder with a small model, data and a recipe that works."""
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("model")
    small_tokenizer.save_pretrained("model")
    write_rows(tmp_path, [{"prompt": f"Question {i}?", "completion": f"{i}."} for i in range(9)])
    (tmp_path / "recipe.yaml").write_text(
        """
model: {base: ./model}
lora: {r: 2}
data: {train: rows.jsonl, max_length: 64}
train: {max_steps: 2, batch_tokens: 64, save_every: 1}
output: run
""",
        encoding="utf-8",
    )
    return tmp_path


def write_rows(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def train(capsys, *arguments):
    code = main(["train", "recipe.yaml", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, " ".join(err.split())


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.base=smolm2-135m-instruct"], "did you mean 'smollm2-135m-instruct'?"),
        (["model.base=./modle"], "modle"),
        (["data.train=row.jsonl"], "did you mean 'rows.jsonl'?"),
        (["trian.lr=1"], "did you mean 'train'?"),
        (["train.learning_rate=1e-4", "lora.rank=4", "data.max_length=no"], "3 mistakes"),
        (["lora.target_modules=[q_porj]"], "q_proj"),
        (["train.lr=-1"], "train.lr"),
        (["data.max_length=8"], "no token to learn is left"),
    ],
)
def test_what_a_recipe_cannot_mean(folder, capsys, arguments, expected):
    code, out, err = train(capsys, *arguments)
    assert code == 2
    assert expected in err
    assert out == ""
    assert not (folder / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "empty"),
        (["{broken", {"prompt": "a", "completion": "b"}], "line 1"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "line 2"),
        ([{"prompt": "a", "completion": ""}], "line 1"),
        ([{"tokens": [1, 2]}], "tokens"),
        ([{"prompt": "a", "completion": "<|im_end|>"}], "control token"),
    ],
    ids=["empty", "broken", "half a row", "nothing to learn", "unknown form", "control token"],
)
def test_what_data_cannot_be(folder, capsys, rows, expected):
    write_rows(folder, rows)
    code, _, err = train(capsys)
    assert code == 2
    assert expected in err


def test_a_model_without_a_chat_template(folder, capsys):
    (folder / "model" / "chat_template.jinja").unlink()
    code, _, err = train(capsys)
    assert code == 2
    assert "no chat template" in err


def test_a_folder_that_is_somebody_elses(folder, capsys):
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("years", encoding="utf-8")
    for arguments in ([], ["--fresh"]):
        code, _, err = train(capsys, *arguments)
        assert code == 2
        assert "thesis.txt" in err
    assert snapshot(folder / "run") == {folder / "run" / "thesis.txt": b"years"}


def test_the_run_of_another_recipe(folder, capsys):
    assert train(capsys)[0] == 0
    before = snapshot(folder / "run")
    code, _, err = train(capsys, "train.lr=1e-3")
    assert code == 2
    assert "--fresh" in err
    assert snapshot(folder / "run") == before


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(folder, capsys):
    assert train(capsys)[0] == 0
    run = folder / "run"
    whole = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    record = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}), encoding="utf-8")
    (run / "checkpoints" / "step-000002" / "adapter.safetensors").write_bytes(b"torn")
    code, _, err = train(capsys)
    assert code == 0
    assert "step-000002 is damaged and is passed over" in err
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == whole


def test_no_checkpoint_is_whole(folder, capsys):
    assert train(capsys)[0] == 0
    run = folder / "run"
    record = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}), encoding="utf-8")
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (checkpoint / "state.json").unlink()
    code, _, err = train(capsys)
    assert code == 1
    assert "--fresh" in err


def test_a_damaged_adapter(folder, capsys):
    assert train(capsys)[0] == 0
    weights = folder / "run" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    code = main(["chat", "run", "--prompt", "Question?"])
    _, err = capsys.readouterr()
    assert code == 1
    assert "adapter_model.safetensors" in " ".join(err.split())
    assert "Traceback" not in err


def test_a_full_disk(folder, capsys, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert train(capsys, "train.max_steps=1", "output=first")[0] == 0
    before = snapshot(folder / "first")
    monkeypatch.setattr(os, "fsync", full)
    code, _, err = train(capsys)
    assert code == 1
    assert "no space left" in err
    assert snapshot(folder / "first") == before
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


def test_errors_as_json(folder, capsys):
    code, out, _ = train(capsys, "trian.lr=1", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["exit_code"] == 2
    assert error["problems"][0]["suggestion"] == "did you mean 'train'?"
