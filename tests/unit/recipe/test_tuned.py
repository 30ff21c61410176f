"""Runs in which every weight learns: what comes out, and how it goes on."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForCausalLM

from ince.cli.app import cli
from ince.errors import ConfigError, InputError
from ince.recipe import parse_recipe
from ince.recipe.run import run_recipe
from ince.report import write_report


@pytest.fixture
def recipe(tmp_path, tiny_llama, small_tokenizer):
    """A function that makes a recipe over a small random model, in this folder."""
    tiny_llama().save_pretrained(tmp_path / "base")
    small_tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(12)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")

    def make(output="run", *, changes=(), **train):
        rows = str(tmp_path / "rows.jsonl")
        settings = {"method": "full", "max_steps": 3, "batch_tokens": 128, "lr": 1e-3}
        return parse_recipe(
            {
                "model": {"base": str(tmp_path / "base"), "compute_dtype": "float32"},
                "data": {"train": rows, "eval": rows, "max_length": 64},
                "train": settings | train,
                "evaluate": {"num_samples": 1, "max_new_tokens": 2},
                "output": str(tmp_path / output),
            },
            overrides=changes,
        )

    return make


def run(recipe):
    return run_recipe(recipe, console=Console(quiet=True))


def weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return dict(model.named_parameters())


def test_every_weight_learns_and_a_whole_model_comes_out(recipe, tmp_path):
    record = run(recipe(eval_every=2))
    folder = tmp_path / "run"
    assert not (folder / "adapter").exists()
    before, after = weights(tmp_path / "base"), weights(folder / "model")
    assert before.keys() == after.keys()  # what is tied stays one weight
    assert "lm_head.weight" not in after
    assert all(not torch.equal(before[name], after[name]) for name in before)
    num_weights = sum(p.numel() for p in after.values())
    assert record["model"]["num_trainable"] == record["base"]["num_parameters"] == num_weights
    assert record["model"]["digest"]
    assert record["base"]["quantization"] is None
    assert [proof["name"] for proof in record["proofs"]][-1] == "saved model equals trained model"
    assert record["proofs"][-1]["value"] == 0
    loss = record["evaluation"]["metrics"][0]
    assert loss["tuned"] < loss["base"]
    assert "saved model equals trained model" in write_report(folder).read_text("utf-8").lower()


def test_a_run_that_was_cut_off_goes_on_to_the_bit(recipe, tmp_path):
    run(recipe(save_every=2))
    folder = tmp_path / "run"
    (folder / "model").rename(tmp_path / "whole")
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    record = json.loads((folder / "run.json").read_text("utf-8"))
    record["status"] = "running"
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    run(recipe(save_every=2))
    whole = tmp_path / "whole" / "model.safetensors"
    assert (folder / "model" / "model.safetensors").read_bytes() == whole.read_bytes()


def test_it_trains_as_torch_does_by_itself(recipe, tmp_path):
    """One step of the run is one step of torch's AdamW on the same gradient."""
    run(recipe(max_steps=1, warmup_ratio=0.0, max_grad_norm=0.0, batch_tokens=4096))
    before, after = weights(tmp_path / "base"), weights(tmp_path / "run" / "model")
    moves = torch.cat([(after[name] - before[name]).flatten() for name in before])
    # The first step of Adam moves what has a gradient by the rate, whatever the gradient.
    moved = moves[moves != 0].abs()
    assert moved.max() <= 1e-3 * 1.001
    assert moved.median() > 0.9e-3


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands_take_the_run(recipe, tmp_path):
    run(recipe(max_steps=1))
    folder = tmp_path / "run"
    measured = invoke(
        "eval", folder, "--num-rows", 1, "--max-new-tokens", 1, "--device", "cpu", "--json"
    )
    content = json.loads(measured.stdout)
    loss = content["evaluation"]["metrics"][0]
    assert loss["base"] != loss["tuned"]
    assert content["base"] == str(tmp_path / "base")
    for options, model in (((), folder / "model"), (("--base",), tmp_path / "base")):
        asked = invoke("chat", folder, "--prompt", "Hi", "--max-new-tokens", 1, "--json", *options)
        assert json.loads(asked.stdout)["model"] == str(model)
    for refused in (
        invoke("merge", folder, "--out", tmp_path / "merged"),
        invoke("inspect", folder),
        invoke("eval", folder / "model", "--base", "x", "--data", tmp_path / "none.jsonl"),
    ):
        assert refused.exception is not None
    assert "every weight of this run was trained" in str(invoke("inspect", folder).exception)


def test_what_is_of_adapters_and_packed_bases_is_refused(recipe):
    with pytest.raises(ConfigError) as caught:
        recipe(
            changes=(
                "model.quantize=nf4",
                "model.compute_dtype=float16",
                "lora.r=4",
                "train.loraplus_lr_ratio=16",
            )
        )
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["model.quantize", "model.compute_dtype", "lora", "train.loraplus_lr_ratio"]
    assert all(problem.suggestion for problem in caught.value.problems)
    made = recipe(changes=("lora=null",))
    assert made.model.quantize is None
    assert recipe(method="lora").model.quantize == "nf4"


def test_a_base_that_is_packed_already_is_refused(recipe, tmp_path):
    made = recipe()
    result = CliRunner().invoke(
        cli, ["quantize", str(tmp_path / "base"), "--out", str(tmp_path / "packed")]
    )
    assert result.exit_code == 0, result.output
    packed = made.model.model_copy(update={"base": str(tmp_path / "packed")})
    with pytest.raises(InputError, match="packed weights cannot learn"):
        run(made.model_copy(update={"model": packed}))
