"""Twenty kills at random moments, and damaged checkpoints in between: the same bytes at the end.

The run has everything that a state can forget: dropout, several micro-batches to a step, LoRA+,
noise on the embeddings, a moving average, a best step, early stopping, packing over epochs, and
a base in NF4. What is killed, and how, is in `killed_sittings.py`.
"""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROGRAM = Path(__file__).with_name("killed_sittings.py")
SEED = 20
EVAL_EVERY, PATIENCE = 4, 14
# No gain is ever large enough, so early stopping ends the run here, short of its epochs.
LAST_STEP = EVAL_EVERY * (1 + PATIENCE)

# How often each, and up to which call of a sitting: a sitting takes some steps and no more.
KILLS = {
    "forward": (3, 16),
    "backward": (3, 200),
    "update": (1, 80),
    "average": (1, 3),
    "evaluation": (2, 3),
    "logging": (1, 4),
    "writing": (2, 5),
    "syncing": (2, 7),
    "renaming": (3, 10),
    "reading back": (1, 2),
    "removing": (1, 1),
    "clock": (3, None),
}


@pytest.fixture
def recipe(tmp_path, small_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    for name, first, num in (("train", 0, 90), ("held", 90, 6)):
        rows = [
            {"prompt": f"Question {i}, of {'many ' * (i % 7)}words?", "completion": f"It is {i}."}
            for i in range(first, first + num)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
model: {{base: ./model, quantize: nf4, compute_dtype: float32}}
lora: {{r: 2, dropout: 0.1}}
data: {{train: train.jsonl, eval: held.jsonl, max_length: 96}}
train:
  {{epochs: 40, batch_tokens: 192, micro_batch_tokens: 96, lr: 5.0e-3, save_every: 2,
    loraplus_lr_ratio: 4, neftune_alpha: 5, ema_decay: 0.9, keep_best: true,
    eval_every: {EVAL_EVERY}, early_stopping: {{patience: {PATIENCE}, min_delta: 50}}}}
evaluate: {{num_samples: 0}}
output: unused
""",
        encoding="utf-8",
    )
    return path


class Run:
    """A run folder, and somebody who sits down to it, and is killed."""

    def __init__(self, driver, errors, output):
        self.driver, self.errors, self.output = driver, errors, output

    def sit(self, **order):
        self.driver.stdin.write(json.dumps({"output": str(self.output), **order}) + "\n")
        self.driver.stdin.flush()
        answer = json.loads(self.driver.stdout.readline())
        answer["err"] = self.errors.read_text(encoding="utf-8", errors="replace")
        return answer

    def checkpoints(self):
        return sorted((self.output / "checkpoints").glob("step-*"), reverse=True)

    def log(self):
        """Its lines, but for what time and memory were taken."""
        lines = (self.output / "log.jsonl").read_text("utf-8").splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if "second" not in k and "bytes" not in k}
            for line in lines
        ]

    def adapter(self):
        return {path.name: path.read_bytes() for path in (self.output / "adapter").iterdir()}


@pytest.fixture
def start(tmp_path, recipe):
    """A function that gives a run by the name of its folder."""
    errors = tmp_path / "errors.txt"
    driver = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(recipe), str(errors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield lambda name: Run(driver, errors, tmp_path / name)
    driver.stdin.close()
    driver.stdout.close()
    try:
        assert driver.wait(timeout=60) == 0
    finally:
        driver.kill()


def truncate(folder):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def flip_a_bit(folder):
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[len(data) // 2] ^= 4
    (folder / "adapter.safetensors").write_bytes(bytes(data))


def remove(folder):
    (folder / "ema.safetensors").unlink()


def orders(chance):
    """The kills in a random order."""
    drawn = [
        {"kind": kind, "seconds": chance.uniform(0.0, 0.12)}
        if most is None
        else {"kind": kind, "call": chance.randint(1, most)}
        for kind, (number, most) in KILLS.items()
        for _ in range(number)
    ]
    chance.shuffle(drawn)
    return drawn


@pytest.mark.long
def test_killed_more_than_twenty_times_it_ends_with_the_same_bytes(start):
    whole, cut = start("whole"), start("cut")
    ended = whole.sit()
    assert ended["exit"] == 0, ended["err"]

    chance = random.Random(SEED)
    damages = [truncate, flip_a_bit, remove]
    damaged = {}
    happened = Counter()
    expected_line = None
    for order in orders(chance):
        ended = cut.sit(**order)
        assert ended["killed"] == order["kind"], (order, ended)
        happened[order["kind"]] += 1
        if expected_line is not None:
            assert expected_line in " ".join(ended["err"].split())
            expected_line = None
        good = [c for c in cut.checkpoints() if damaged.get(c.name) != c.stat().st_ino]
        if damages and len(good) > 1 and good == cut.checkpoints() and sum(happened.values()) > 4:
            damages.pop()(good[0])
            damaged[good[0].name] = good[0].stat().st_ino
            expected_line = f"{good[0].name} is damaged and is passed over"
    assert not damages
    assert {kind: number for kind, (number, _) in KILLS.items()} == happened
    assert happened.total() > 20

    # The last two: while the result is written, and not at all.
    ended = cut.sit(kind="result", call=1)
    assert ended["killed"] == "result", ended
    ended = cut.sit()
    assert ended["exit"] == 0, ended["err"]

    assert cut.adapter() == whole.adapter()
    assert cut.log() == whole.log()
    assert [line["step"] for line in cut.log() if "loss" in line] == [*range(1, LAST_STEP + 1)]
    records = [json.loads((run.output / "run.json").read_text("utf-8")) for run in (whole, cut)]
    assert records[0]["status"] == records[1]["status"] == "done"
    for name in ("adapter_step", "best_step", "best_loss", "final_loss", "stopped_early"):
        assert records[0]["training"][name] == records[1]["training"][name]
    assert records[1]["training"]["stopped_early"]
    # Nothing that was half-written is left, and no more checkpoints than asked for.
    assert [path for path in cut.output.rglob(".*") if path.suffix in {".tmp", ".old"}] == []
    assert [c.name for c in cut.checkpoints()] == [c.name for c in whole.checkpoints()]
