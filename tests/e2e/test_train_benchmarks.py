"""The training benchmarks run, and write every figure they promise, on tiny models."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ince.data.conversation import Conversation, Message
from ince.data.template import Encoder

ROOT = Path(__file__).parents[2]


def is_figure(value):
    return isinstance(value, float) and math.isfinite(value) and value > 0


@pytest.fixture
def training(monkeypatch):
    """Imports a module of `benchmarks/training`."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"training.{name}")


def test_a_step_is_told_part_by_part_beside_its_bound(figures_of):
    options = ("--steps", "1", "--rows", "2x192", "--dtype", "float32")
    figures, said = figures_of("train_profile", *options, timeout=600)
    parts = {part: sum(times.values()) for part, times in figures["parts"].items()}
    assert {"matrix products", "LoRA", "head and loss", "optimizer"} <= set(parts)
    assert all(is_figure(seconds) for seconds in parts.values())
    # Own times do not overlap: together they are no longer than the steps that were traced.
    assert sum(parts.values()) <= sum(figures["traced_step_seconds"])
    assert all(0 < n <= 2 * 192 for n in figures["tokens"])
    assert all(is_figure(s) for s in (*figures["bound_seconds"], *figures["step_seconds"]))
    assert "share of the bound" in said


@pytest.mark.long
def test_ince_is_timed_beside_its_bound_where_there_are_no_peers(figures_of):
    options = ("--libraries", "ince", "--only", "speed", "--dtype", "float32")
    figures, said = figures_of("train_cpu", *options, timeout=600)
    found = figures["speed"]["ince"]
    assert is_figure(found["targets_per_second"])
    assert found["targets_per_second"] < found["tokens_per_second"]
    assert is_figure(found["bound"]["share"])
    assert found["bound"]["tokens_per_second"] == pytest.approx(
        found["tokens_per_second"] / found["bound"]["share"]
    )
    assert found["memory"]["peak"] >= found["memory"]["own_peak"] > 1e8
    assert figures["speed_goals"]["bound"]["goal"] == "at least 0.6"
    assert {"machine", "versions", "command", "date", "chats", "dtype"} <= set(figures)
    assert "share of the bound" in said


@pytest.mark.long
def test_each_seed_is_judged_on_held_out_chats(figures_of):
    options = ("--libraries", "ince", "--only", "loss", "--seeds", "2", "--dtype", "float32")
    figures, _ = figures_of("train_cpu", *options, "--lr", "5e-3", timeout=600)
    first, second = figures["loss"]["losses"]["ince"]
    assert first != second
    assert max(first, second) < figures["loss"]["base"]


def test_marks_find_the_targets_that_ince_finds(training, tmp_path):
    """What TRL's loss on assistant turns goes by, on the benchmark's own chats."""
    from transformers import AutoTokenizer

    marks = training("marks")
    tokenizer = AutoTokenizer.from_pretrained(training("tiny").tiny_model(tmp_path))
    template, encoder = marks.marked_template(tokenizer), Encoder(tokenizer)
    chats = training("chats").make_chats(12, 1)
    assert any(len(chat) > 2 for chat in chats)
    for chat in chats:
        messages = tuple(Message(m["role"], m["content"]) for m in chat)
        ours = encoder.encode(Conversation(messages, "chat"), loss_on="assistant")
        ids, targets = marks.tokens_and_targets(tokenizer, template, chat)
        assert ids[: ours.num_tokens] == list(ours.input_ids)
        assert targets[: ours.num_tokens] == list(ours.targets)
        assert not any(targets[ours.num_tokens :])


def test_a_template_of_another_kind_is_not_marked(training, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(training("tiny").tiny_model(tmp_path))
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    with pytest.raises(ValueError, match="not a ChatML template"):
        training("marks").marked_template(tokenizer)


def test_chats_follow_from_their_seed_and_none_comes_twice(training):
    make_chats = training("chats").make_chats
    chats = make_chats(40, 3)
    assert chats == make_chats(40, 3)
    assert chats != make_chats(40, 4)
    assert len({json.dumps(chat) for chat in chats}) == 40


def test_micro_batches_hold_a_step_whole(training):
    batches = training("measure").micro_batches(3001, 1234, 3)
    assert [sum(column) for column in zip(*batches, strict=True)] == [3001, 1234]
    assert {tokens for tokens, _ in batches} == {1000, 1001}


def test_a_variant_changes_the_recipe_and_the_environment(training):
    parse = training("lineup").parse_variant
    assert parse("plain:data.packing=false,train.lr=1e-3,env.OMP_NUM_THREADS=1") == (
        "plain",
        {"data": {"packing": False}, "train": {"lr": 1e-3}, "env": {"OMP_NUM_THREADS": "1"}},
    )
    with pytest.raises(ValueError, match="section.key=value"):
        parse("plain:packing=false")


@pytest.mark.long
def test_the_program_for_a_gpu_runs_on_tiny_shapes_without_one(tmp_path):
    command = [sys.executable, "benchmarks/train_gpu.py", "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--libraries", "ince", "--steps", "1", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "train_gpu.json").read_text(encoding="utf-8"))
    assert [result["case"]["base"] for result in record["results"]] == ["nf4", "bf16"]
    for result in record["results"]:
        figures = result["figures"]
        assert len(figures["step_seconds"]) == 1
        assert all(is_figure(figures[key]) for key in ("tokens_per_second", "share_of_peak"))
    page = (tmp_path / "train_gpu.md").read_text(encoding="utf-8")
    assert page.count("| ince |") == 2


def test_goals_of_a_gpu_compare_with_the_best_peer_of_a_case(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    goals = importlib.import_module("train_gpu").goals

    def result(name, library, **figures):
        return {"case": {"name": name, "library": library}, "figures": figures}

    name, large, gib = "8b nf4 r=16 2048 tokens", "70b nf4 r=16 2048 tokens", 1 << 30
    found = goals(
        [
            result(name, "ince", tokens_per_second=150.0, peak_bytes=7 * gib),
            result(name, "TRL", tokens_per_second=100.0, peak_bytes=10 * gib),
            result(large, "ince", reserved_bytes=47 * gib, share_of_peak=0.5),
            result(large, "TRL", error="out of memory"),
        ]
    )
    assert [(value, reached) for _, value, _, reached in found] == [
        (1.5, True),
        (0.7, True),
        (47.0, False),
        (0.5, True),
    ]
