"""lm-evaluation-harness scores a served adapter as it scores the same one in its own process."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SERVED = runpy.run_path(str(Path(__file__).with_name("test_serve.py")))
model_folder, adapters, server = (SERVED[name] for name in ("model_folder", "adapters", "server"))

TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROWS = [
    {"question": "The sea is", "choices": [" blue", " made of stone", " a"], "answer": 0},
    {
        "question": "One and two are",
        "choices": [" three", " nine hundred", " İstanbul"],
        "answer": 0,
    },
    {"question": "Kitap", "choices": [" okunur", " içilir", " uçar mı?"], "answer": 0},
    {"question": "a", "choices": [" b", " c c c c c c", "\n"], "answer": 1},
]


@pytest.fixture
def evaluate(tmp_path):
    """A function that runs the harness as a user does, and gives what it found of each choice."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = TASK.format(rows=tmp_path / "rows.jsonl")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(task)

    def run(model, /, **arguments):
        out = tmp_path / f"{model}-{len(list(tmp_path.iterdir()))}"
        command = [sys.executable, "-m", "lm_eval", "--model", model, "--tasks", "tiny_choice"]
        pairs = ",".join(f"{name}={value}" for name, value in arguments.items())
        command += ["--model_args", pairs, "--include_path", str(tmp_path / "tasks")]
        command += ["--output_path", str(out), "--log_samples", "--device", "cpu"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
        environment = os.environ | offline | {"NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        [samples] = out.rglob("samples_*.jsonl")
        [results] = out.rglob("results_*.json")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        found = [[float(choice[0]) for choice in line["filtered_resps"]] for line in lines]
        return found, json.loads(results.read_text())["results"]["tiny_choice"]

    return run


@pytest.mark.parametrize("name", ["base", "a2"])
def test_a_task_scores_over_the_server_as_in_process(
    server, model_folder, adapters, evaluate, name
):
    _, url = server
    served, served_scores = evaluate(
        "local-completions",
        model=name,
        base_url=f"{url}/v1/completions",
        tokenizer=model_folder,
        tokenizer_backend="huggingface",
        num_concurrent=1,
        max_length=512,
    )
    adapter = {} if name == "base" else {"peft": adapters / name}
    alone, alone_scores = evaluate("hf", pretrained=model_folder, dtype="float32", **adapter)
    assert len(served) == len(ROWS)
    for one, other in zip(served, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    for metric in ("acc,none", "acc_norm,none"):
        assert served_scores[metric] == alone_scores[metric]
