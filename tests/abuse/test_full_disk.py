"""A disk that fills while a run trains: the run waits, goes on, or stops where it can go on.

Once on a small file system that is really full, where one may be mounted, and once with a
write that the system refuses.
"""

import contextlib
import errno
import json
import os
import shutil

import pytest
import torch
from rich.console import Console

from ince.data import Example
from ince.errors import DiskFullError
from ince.lora import LoraConfig, get_peft_model
from ince.recipe import parse_recipe
from ince.recipe.run import run_recipe
from ince.train import TrainConfig, train
from ince.train.checkpoint import latest_checkpoint
from ince.train.stored_tensors import write_group

SIZE = 2 << 20


def fill(folder):
    """Take all the space; returns the file that holds it."""
    path = folder / "download.iso"
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)
    assert shutil.disk_usage(folder).free == 0
    return path


class Watcher:
    """An observer that acts at a step, and when it is told of a pause."""

    def __init__(self, at=None, act=None, on_pause=None):
        self.at, self.act, self.on_pause, self.lines = at, act, on_pause, []

    def started(self, first_step, num_steps):
        pass

    def stepped(self, report):
        if report.step == self.at:
            self.act()

    def evaluated(self, step, loss):
        pass

    def said(self, line):
        self.lines.append(line)
        if self.on_pause is not None and "pauses" in line:
            self.on_pause()


def run(folder, tiny_llama, observer, **changes):
    torch.manual_seed(11)
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, lora_dropout=0.1))
    rows = [Example(tuple(range(3, 15)), (False,) * 3 + (True,) * 9, str(i)) for i in range(12)]
    settings = {"batch_tokens": 32, "lr": 1e-2, "save_every": 2, "save_wait_seconds": 0.01}
    train(
        model,
        rows,
        TrainConfig(**(settings | changes)),
        run_dir=folder,
        recipe_digest="d",
        packing=False,
        max_length=32,
        pad_id=2,
        observer=observer,
    )
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def steps_in(log):
    return [json.loads(line)["step"] for line in log.read_text("utf-8").splitlines()]


def test_a_run_that_gets_its_space_back_in_time_ends_as_if_nothing_were(
    small_disk, tmp_path, tiny_llama
):
    straight = run(tmp_path / "straight", tiny_llama, Watcher())
    watcher = Watcher(at=3, act=lambda: fill(small_disk))
    watcher.on_pause = (small_disk / "download.iso").unlink
    waited = run(small_disk / "run", tiny_llama, watcher)
    assert all(torch.equal(straight[name], waited[name]) for name in straight)
    log = small_disk / "run" / "log.jsonl"
    assert steps_in(log) == steps_in(tmp_path / "straight" / "log.jsonl")
    assert any("are missing" in line for line in watcher.lines)


def test_a_run_that_gets_none_stops_and_goes_on_later(small_disk, tmp_path, tiny_llama):
    straight = run(tmp_path / "straight", tiny_llama, Watcher())
    folder = small_disk / "run"
    watcher = Watcher(at=3, act=lambda: fill(small_disk))
    with pytest.raises(DiskFullError, match="goes on after step 2") as caught:
        run(folder, tiny_llama, watcher, save_retries=2)
    assert caught.value.exit_code == 1
    assert sum("pauses" in line for line in watcher.lines) == 2
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-000002"]
    found = latest_checkpoint(folder, warn=pytest.fail)
    assert found.state.step == 2
    (small_disk / "download.iso").unlink()
    resumed = run(folder, tiny_llama, Watcher())
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert steps_in(folder / "log.jsonl") == steps_in(tmp_path / "straight" / "log.jsonl")


def test_a_whole_run_on_a_full_disk_fails_cleanly_and_can_be_continued(
    small_disk, tmp_path, tiny_llama, small_tokenizer, monkeypatch
):
    tiny_llama().save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"prompt": f"Question {i}?", "completion": "Yes."}) for i in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = parse_recipe(
        {
            "model": {"base": str(tmp_path / "model")},
            "lora": {"r": 2},
            "data": {"train": str(tmp_path / "train.jsonl"), "max_length": 64},
            "train": {"max_steps": 3, "batch_tokens": 128, "save_retries": 0},
            "evaluate": {"num_samples": 0},
            "output": str(small_disk / "run"),
        }
    )
    console = Console(quiet=True)

    def train_on_a_full_disk(*arguments, **options):
        fill(small_disk)
        return train(*arguments, **options)

    monkeypatch.setattr("ince.recipe.session.train", train_on_a_full_disk)
    with pytest.raises(DiskFullError, match="from its beginning"):
        run_recipe(recipe, console=console)
    record = json.loads((small_disk / "run" / "run.json").read_text("utf-8"))
    assert record["recipe_digest"] == recipe.digest()  # whole, if older
    (small_disk / "download.iso").unlink()
    monkeypatch.undo()
    assert run_recipe(recipe, console=console)["status"] == "done"


def test_a_write_that_the_system_refuses(tmp_path, tiny_llama, monkeypatch):
    """The same without a file system of our own: two saves fail, the third does not."""
    straight = run(tmp_path / "straight", tiny_llama, Watcher())
    left = [2]

    def refuse(path, group):
        path.write_bytes(b"torn")
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_group(path, group)

    monkeypatch.setattr("ince.train.checkpoint.write_group", refuse)
    watcher = Watcher()
    waited = run(tmp_path / "waited", tiny_llama, watcher)
    assert all(torch.equal(straight[name], waited[name]) for name in straight)
    assert sum("no space left on the device" in line for line in watcher.lines) == 2
