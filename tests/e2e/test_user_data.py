"""A user's own data, from a folder outside the repository: JSONL, CSV and ShareGPT."""

import csv
import json
import subprocess
import sys

import pytest

NUM_ROWS = 200

WORDS = ("ev", "okul", "deniz", "kitap", "kapı", "yol", "ağaç", "şehir")


def pairs():
    for i in range(NUM_ROWS):
        word = WORDS[i % len(WORDS)]
        yield f"{i}. {word} kaç harflidir?", f"{word} {len(word)} harflidir."


def write_jsonl(folder):
    lines = (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            },
            ensure_ascii=False,
        )
        for question, answer in pairs()
    )
    (folder / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "mine.jsonl"


def write_csv(folder):
    with (folder / "mine.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "completion"])
        writer.writerows(pairs())
    return "mine.csv"


def write_sharegpt(folder):
    rows = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for q, a in pairs()
    ]
    (folder / "mine.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return "mine.json"


@pytest.mark.long
@pytest.mark.parametrize(
    ("write", "shape"),
    [(write_jsonl, "messages"), (write_csv, "prompt-completion"), (write_sharegpt, "sharegpt")],
    ids=["jsonl", "csv", "sharegpt"],
)
def test_training_on_it(tmp_path, smollm2_folder, write, shape):
    name = write(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        f"""
model: {{base: smollm2-135m-instruct}}
data: {{train: {name}, eval: {name}, max_length: 128}}
train: {{max_steps: 6, batch_tokens: 256, lr: 1e-3}}
evaluate: {{num_samples: 3, max_new_tokens: 16}}
output: runs/mine
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "ince.cli", "train", "recipe.yaml", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["record"]
    assert record["status"] == "done"
    assert record["data"]["train"]["shape"] == shape
    assert record["data"]["train"]["num_examples"] == NUM_ROWS
    assert record["training"]["steps"] == 6
    losses = {m["name"]: (m["base"], m["tuned"]) for m in record["evaluation"]["metrics"]}
    assert losses["heldout_loss"][1] < losses["heldout_loss"][0]
    assert all(proof["holds"] for proof in record["proofs"])
    run = tmp_path / "runs" / "mine"
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert "<html" in (run / "report.html").read_text("utf-8")
