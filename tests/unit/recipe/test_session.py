import json
import shutil

import pytest
from rich.console import Console

from ince.errors import ConfigError, CorruptFileError, OutputError
from ince.recipe import parse_recipe
from ince.recipe.run import run_recipe
from ince.recipe.session import open_run
from ince.record import RunRecord


@pytest.fixture
def recipe(tmp_path, tiny_llama, small_tokenizer):
    """A function that makes a recipe over a small random model, in this folder."""
    tiny_llama().save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(12)]
    for name in ("train", "eval"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "english.txt").write_text("A text in English.\n\nAnother one.\n", "utf-8")

    def make(output="run", **train):
        return parse_recipe(
            {
                "model": {"base": str(tmp_path / "model")},
                "lora": {"r": 2},
                "data": {
                    "train": str(tmp_path / "train.jsonl"),
                    "eval": str(tmp_path / "eval.jsonl"),
                    "max_length": 64,
                },
                "train": {"max_steps": 3, "batch_tokens": 128, "lr": 1e-2} | train,
                "evaluate": {
                    "num_samples": 2,
                    "max_new_tokens": 4,
                    "english": str(tmp_path / "english.txt"),
                },
                "output": str(tmp_path / output),
            }
        )

    return make


def run(recipe, **options):
    return run_recipe(recipe, console=Console(quiet=True), **options)


def test_a_run_leaves_everything_that_the_design_names(recipe, tmp_path):
    record = run(recipe())
    folder = tmp_path / "run"
    assert record["status"] == "done"
    assert {p.name for p in folder.iterdir()} == {
        "adapter",
        "checkpoints",
        "eval.json",
        "log.jsonl",
        "recipe.yaml",
        "run.json",
        "samples.jsonl",
    }
    content = json.loads((folder / "run.json").read_text("utf-8"))
    for section in ("base", "adapter", "data", "training", "evaluation", "proofs", "phases"):
        assert content[section], section
    assert content["base"]["quantization"]["kind"] == "nf4"
    assert [phase["name"] for phase in content["phases"]] == [
        "load",
        "data",
        "train",
        "evaluate",
        "merge check",
    ]
    names = [metric["name"] for metric in content["evaluation"]["metrics"]]
    assert names == ["heldout_loss", "perplexity", "exact_match", "chrf", "english_bits_per_byte"]
    assert all(proof["holds"] for proof in content["proofs"])
    assert [proof["name"] for proof in content["proofs"]] == [
        "packed rows equal single rows",
        "merged model equals adapter",
        "merged model in 16 bits",
    ]
    assert content["proofs"][1]["value"] < 1e-3
    memory = content["memory"]
    assert memory["held_bytes"] < memory["expected_bytes"]
    assert memory["measured_bytes"] > 0
    assert len((folder / "samples.jsonl").read_text("utf-8").splitlines()) == 2


def test_a_run_that_is_done_is_not_trained_again(recipe, tmp_path):
    run(recipe())
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    again = run(recipe())
    assert again["status"] == "done"
    assert adapter.stat().st_mtime_ns == before
    run(recipe(), resume=False)
    assert adapter.stat().st_mtime_ns != before


def test_the_run_of_another_recipe_is_not_touched(recipe, tmp_path):
    run(recipe())
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(OutputError, match="another recipe") as caught:
        open_run(recipe(lr=5e-3), resume=True)
    assert caught.value.exit_code == 2
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_folder_of_something_else_is_not_touched_even_when_fresh(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work", "utf-8")
    for resume in (True, False):
        with pytest.raises(OutputError, match="thesis.txt"):
            open_run(recipe(), resume=resume)
    assert (tmp_path / "run" / "thesis.txt").read_text("utf-8") == "years of work"


def test_an_output_that_is_a_file(recipe, tmp_path):
    (tmp_path / "run").write_text("x", "utf-8")
    with pytest.raises(OutputError, match="is a file"):
        open_run(recipe(), resume=True)


def test_data_that_changed_since_the_checkpoint_are_noticed(recipe, tmp_path):
    made = recipe(max_steps=4, save_every=2)
    run(made)
    record = RunRecord.read(tmp_path / "run")
    record["status"] = "interrupted"
    text = (tmp_path / "train.jsonl").read_text("utf-8").replace("Answer 1", "Reply 1")
    (tmp_path / "train.jsonl").write_text(text, "utf-8")
    with pytest.raises(CorruptFileError, match="another recipe, base or data"):
        run(made)
    record = RunRecord.read(tmp_path / "run")
    assert record["status"] == "failed"
    assert record["error"]["type"] == "CorruptFileError"


def test_the_expanded_base_gives_the_same_adapter_to_the_bit(recipe, tmp_path):
    """`model.expand` trades memory for time, and nothing else."""
    plain = recipe("plain")
    held = plain.model_copy(
        update={
            "model": plain.model.model_copy(update={"expand": True}),
            "output": str(tmp_path / "held"),
        }
    )
    digests = [run(r)["adapter"]["digest"] for r in (plain, held)]
    assert digests[0] == digests[1]


@pytest.mark.long
@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"init": "pissa"},
        {"init": "orthogonal", "bias": "all"},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["norm"]},
        {"trainable_token_indices": [3, 5]},
    ],
    ids="-".join,
)
def test_every_kind_of_adapter_trains_merges_and_goes_on(recipe, tmp_path, lora):
    whole, cut = recipe("whole", save_every=1), recipe("cut", save_every=1, max_steps=3)
    section = whole.lora.model_validate({"r": 2} | lora)
    whole, cut = (each.model_copy(update={"lora": section}) for each in (whole, cut))
    record = run(whole)
    assert record["status"] == "done"
    assert all(proof["holds"] for proof in record["proofs"])
    # Cut off after two of its three steps, and gone on with.
    folder = tmp_path / "cut"
    run(cut)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    for name in ("eval.json", "samples.jsonl", "report.html"):
        (folder / name).unlink(missing_ok=True)
    _mark_unfinished(folder / "run.json")
    assert run(cut)["status"] == "done"
    weights = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert weights[0] == weights[1]


def _mark_unfinished(path):
    record = json.loads(path.read_text("utf-8"))
    record["status"] = "running"
    path.write_text(json.dumps(record), "utf-8")


def test_a_run_is_reported_where_the_recipe_says_without_folders(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(recipe(report_to=["tensorboard"]))
    events = EventAccumulator(str(tmp_path / "run" / "sinks" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("eval/loss")] == [3]
    (text, *_) = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val
    assert b"train.jsonl" in text
    assert str(tmp_path).encode() not in text
    run(recipe(report_to=["tensorboard"]), resume=False)


def test_what_is_not_installed_is_said_before_anything_is_loaded(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        run(recipe(report_to=["wandb"]))
    assert "base" not in json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
