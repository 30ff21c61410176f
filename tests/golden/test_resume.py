"""A run that was killed gives, when it is run again, the adapter of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

NUM_STEPS = 40
PATIENCE_SECONDS = 300


@pytest.fixture
def recipe(tmp_path, small_tokenizer):
    """A recipe over a small random model, with dropout, NF4 and packing."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {
            "prompt": f"Question number {i}, of {'many ' * (i % 7)}words?",
            "completion": f"Answer {i}.",
        }
        for i in range(120)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
model: {{base: ./model, quantize: nf4}}
lora: {{r: 4, dropout: 0.1}}
data: {{train: rows.jsonl, max_length: 128}}
train: {{max_steps: {NUM_STEPS}, epochs: 9, batch_tokens: 256, lr: 1e-2, save_every: 7}}
evaluate: {{num_samples: 0}}
output: unused
""",
        encoding="utf-8",
    )
    return path


def start(recipe, output):
    command = [sys.executable, "-m", "ince.cli", "train", str(recipe), f"output={output}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(recipe, output):
    process = start(recipe, output)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out, err


def wait_for_step(process, output, step):
    log = output / "log.jsonl"
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} never came: {process.stderr.read()}")


@pytest.mark.long
def test_killed_twice_it_ends_with_the_same_bytes(recipe, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(recipe, whole)
    for step in (10, 25):
        process = start(recipe, cut)
        wait_for_step(process, cut, step)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_SECONDS)
    _, err = finish(recipe, cut)
    assert "going on after step" in err
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (whole / "adapter" / name).read_bytes() == (cut / "adapter" / name).read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
        for run in (whole, cut)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == NUM_STEPS


@pytest.mark.long
def test_interrupted_it_says_so_and_goes_on(recipe, tmp_path):
    cut = tmp_path / "cut"
    process = start(recipe, cut)
    wait_for_step(process, cut, 5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "run the same command again" in err
    record = json.loads((cut / "run.json").read_text("utf-8"))
    assert record["status"] == "interrupted"
    assert (cut / "report.html").is_file()
    finish(recipe, cut)
    assert json.loads((cut / "run.json").read_text("utf-8"))["status"] == "done"
    _, err = finish(recipe, cut)
    assert "done already" in err
