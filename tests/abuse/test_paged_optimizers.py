"""The file of pages fails: the step is not taken, and everything is as it was."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from ince.errors import ConfigError, CorruptFileError, DiskFullError, TrainingError
from ince.optim import PagedAdamW, PagesConfig

SIZE = 128 << 10  # of the small disk


def make(directory, **budgets):
    drawn = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n, generator=drawn)) for n in (9000, 700, 50)]
    budgets = {"memory": 0, "page_bytes": 4096} | budgets
    pages = PagesConfig(directory=directory, **budgets)
    return parameters, PagedAdamW(parameters, lr=0.1, pages=pages)


def advance(parameters, optimizer, first, last):
    for step in range(first, last):
        drawn = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=drawn)
        optimizer.step()


def everything(parameters, optimizer):
    state = optimizer.state_dict()["state"]
    tensors = [tensor for key in sorted(state) for tensor in state[key].values()]
    return [p.detach().clone() for p in parameters] + tensors


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("memory", [0, 60_000])
@pytest.mark.parametrize("call", ["preadv", "pwrite"])
@pytest.mark.parametrize("number", [1, 6, 11])
def test_a_step_that_fails_anywhere_is_not_taken(tmp_path, monkeypatch, call, number, memory):
    straight, reference = make(tmp_path)
    advance(straight, reference, 0, 5)
    parameters, optimizer = make(tmp_path, memory=memory)
    advance(parameters, optimizer, 0, 3)
    before = everything(parameters, optimizer)
    real, left = getattr(os, call), [number]

    def fail(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CorruptFileError, match="cannot be"):
            advance(parameters, optimizer, 3, 4)
    assert same(before, everything(parameters, optimizer))
    advance(parameters, optimizer, 3, 5)  # the fault has passed
    assert same(everything(straight, reference), everything(parameters, optimizer))


def test_a_disk_that_dies_within_a_step_stops_the_optimizer_until_a_state_is_loaded(
    tmp_path, monkeypatch
):
    parameters, optimizer = make(tmp_path)
    advance(parameters, optimizer, 0, 2)
    saved, weights = optimizer.state_dict(), [p.detach().clone() for p in parameters]
    real, left = os.preadv, [9]

    def die(*arguments):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", die)
        with pytest.raises(TrainingError, match="could not be put back"):
            advance(parameters, optimizer, 2, 3)
    with pytest.raises(TrainingError, match="cut off in its middle"):
        advance(parameters, optimizer, 2, 3)
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data.copy_(weight)
    optimizer.load_state_dict(saved)
    advance(parameters, optimizer, 2, 4)
    straight, reference = make(tmp_path)
    advance(straight, reference, 0, 4)
    assert same(everything(straight, reference), everything(parameters, optimizer))


def test_a_file_that_was_cut_off_is_noticed_before_anything_changes(tmp_path):
    parameters, optimizer = make(tmp_path)
    advance(parameters, optimizer, 0, 2)
    weights = [p.detach().clone() for p in parameters]
    saved = optimizer.state_dict()
    os.ftruncate(optimizer._store._file._handle, 5000)
    with pytest.raises(CorruptFileError, match="cut off"):
        advance(parameters, optimizer, 2, 3)
    assert same(weights, parameters)
    optimizer.load_state_dict(saved)
    advance(parameters, optimizer, 2, 3)


def test_a_page_of_something_else_is_noticed(tmp_path):
    parameters, optimizer = make(tmp_path)
    advance(parameters, optimizer, 0, 2)
    weights = [p.detach().clone() for p in parameters]
    size = os.fstat(optimizer._store._file._handle).st_size
    optimizer._store._stream.drop()
    os.pwrite(optimizer._store._file._handle, bytes(size), 0)
    with pytest.raises(CorruptFileError, match="not what was written"):
        advance(parameters, optimizer, 2, 3)
    assert same(weights, parameters)


def test_a_full_disk_is_said_before_the_first_step(small_disk):
    parameters, optimizer = make(small_disk)
    weights = [p.detach().clone() for p in parameters]
    with pytest.raises(DiskFullError, match="optimizer state"):
        advance(parameters, optimizer, 0, 1)
    assert same(weights, parameters)
    assert optimizer.state_dict()["state"] == {}
    optimizer.set_budget(memory=None)
    advance(parameters, optimizer, 0, 1)


def test_a_budget_that_shrinks_onto_a_full_disk_leaves_all_as_it_was(small_disk, tmp_path):
    parameters, optimizer = make(small_disk, memory=None)
    advance(parameters, optimizer, 0, 2)
    before, usage = everything(parameters, optimizer), optimizer.usage()
    with pytest.raises(DiskFullError):
        optimizer.set_budget(memory=0)
    assert optimizer.usage().file_bytes == usage.file_bytes == 0
    assert same(before, everything(parameters, optimizer))
    straight, reference = make(tmp_path)
    advance(straight, reference, 0, 4)
    advance(parameters, optimizer, 2, 4)
    assert same(everything(straight, reference), everything(parameters, optimizer))


def test_a_budget_may_change_in_mid_run(tmp_path):
    straight, reference = make(tmp_path, memory=None)
    parameters, optimizer = make(tmp_path, memory=None)
    advance(straight, reference, 0, 8)
    held = []
    for step, memory in enumerate((None, "64KiB", 0, 4096 * 9, None, "64KiB", 0, None)):
        optimizer.set_budget(memory=memory)
        advance(parameters, optimizer, step, step + 1)
        held.append(optimizer.usage().memory_bytes)
    assert held[2] < held[3] < held[1] < held[0] == held[7]
    assert held[1] <= 64 * 1024
    assert same(everything(straight, reference), everything(parameters, optimizer))


@pytest.mark.parametrize(
    ("budgets", "match"),
    [
        ({"memory": 4095}, "less than one page"),
        ({"memory": 0, "file": 0}, "no tier"),
        ({"memory": 0, "file": 8192}, "does not fit"),
        ({"memory": "much"}, "memory"),
        ({"page_bytes": 100}, "page_bytes"),
        ({"memroy": 1}, "did you mean 'memory'"),
    ],
)
def test_budgets_that_cannot_be(tmp_path, budgets, match):
    with pytest.raises(ConfigError, match=match):
        advance(*make(tmp_path, **budgets), 0, 1)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "x").write_text("")
    for name in ("x", "nowhere"):
        with pytest.raises(ConfigError, match="is not a folder"):
            make(tmp_path / name)


KILLED = """
import os, signal, sys, time
import torch
from pathlib import Path
from ince.optim import PagedAdamW, PagesConfig

SIZE = 128 << 10  # of the small disk

weight = torch.nn.Parameter(torch.ones(5000))
pages = PagesConfig(memory=0, page_bytes=4096, directory=Path(sys.argv[1]))
optimizer = PagedAdamW([weight], pages=pages)
weight.grad = torch.ones(5000)
optimizer.step()
found = os.fstat(optimizer._store._file._handle)
print(oct(found.st_mode & 0o777), found.st_nlink, found.st_size > 0, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_process_that_was_killed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["0o600", "0", "True"]
    assert list(tmp_path.iterdir()) == []
