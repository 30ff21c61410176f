"""A process that is killed at any moment leaves a registry that opens, with what was answered."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest

from ince.formats.adapter import adapter_digest
from ince.registry import Registry

NUM_KILLS = 20


def changes(sources):
    """What the child does, one after the other."""
    _, second, third = sources
    return [
        lambda registry: registry.put(second, name="x"),
        lambda registry: registry.put(third, name="y"),
        lambda registry: registry.rollback("x"),
        lambda registry: registry.alias("x", adapter_digest(third)),
        lambda registry: registry.remove("y"),
        lambda registry: registry.gc(keep=0, min_age_seconds=0),
        lambda registry: registry.put(second, name="z"),
        lambda registry: registry.tenants.add_tenant("acme"),
    ]


def _child(folder, sources, pipe, kill_at):
    if kill_at is not None:
        lines = 0

        def count(frame, event, _argument):
            nonlocal lines
            name = frame.f_code.co_filename
            if "/ince/registry/" not in name and not name.endswith("/ince/files.py"):
                return None
            lines += event == "line"
            if lines == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        sys.settrace(count)
    with Registry(folder, actor="child") as registry:
        for change in changes(sources):
            change(registry)
            pipe.send(dict(registry.visible()))
    sys.settrace(None)
    pipe.send(lines if kill_at is not None else None)


def run_child(folder, sources, *, kill_at=None, seconds=None):
    """Returns what the child said before it ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(folder, sources, theirs, kill_at))
    child.start()
    theirs.close()
    if seconds is not None:
        time.sleep(seconds)
        child.kill()
    child.join()
    said = []
    try:
        while True:
            said.append(ours.recv())
    except EOFError:
        return said


@pytest.fixture
def prepared(tmp_path, write):
    """A registry, the adapters to change it with, and its names after each change."""
    sources = [write(seed) for seed in (1, 2, 3)]
    folder = tmp_path / "prepared"
    with Registry(folder, create=True) as registry:
        registry.put(sources[0], name="x")
        states = [registry.visible()]
    shutil.copytree(folder, tmp_path / "straight")
    *after, num_lines = run_child(tmp_path / "straight", sources, kill_at=-1)
    assert len(after) == len(changes(sources))
    return folder, sources, [*states, *after], num_lines


def check(folder, states, said):
    """The registry opens, and is as it was answered, or one change further."""
    answered = len([each for each in said if isinstance(each, dict)])
    with Registry(folder) as registry:
        assert registry.verify().problems == ()
        assert registry.visible() in states[answered : answered + 2]
        registry.gc(keep=3)
        listed = {entry.digest for entry in registry.entries()}
        assert {path.name for path in (folder / "content").iterdir()} == listed
        incoming = folder / "incoming"
        assert not incoming.exists() or list(incoming.iterdir()) == []
        assert registry.verify().problems == ()


def test_killed_at_any_line_of_a_change(prepared, tmp_path):
    folder, sources, states, num_lines = prepared
    dice = random.Random(0)
    width = num_lines / NUM_KILLS
    for number in range(NUM_KILLS):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        at = int(number * width + dice.random() * width) + 1
        said = run_child(copy, sources, kill_at=at)
        assert num_lines not in said, "it was not killed"
        check(copy, states, said)
        shutil.rmtree(copy)


def test_killed_at_any_time(prepared, tmp_path):
    """Also within a call of SQLite or of the system."""
    folder, sources, states, _ = prepared
    started = time.monotonic()
    shutil.copytree(folder, tmp_path / "whole")
    said = run_child(tmp_path / "whole", sources)
    whole = time.monotonic() - started
    check(tmp_path / "whole", states, said)
    for number in range(NUM_KILLS // 2):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        said = run_child(copy, sources, seconds=whole * (number + 0.5) / (NUM_KILLS // 2))
        check(copy, states, said)
        shutil.rmtree(copy)


def test_killed_while_the_registry_is_made(tmp_path, write):
    context = multiprocessing.get_context("fork")

    def make(folder, kill_at):
        lines = 0

        def count(frame, event, _argument):
            nonlocal lines
            if "/ince/registry/" not in frame.f_code.co_filename:
                return None
            lines += event == "line"
            if lines == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        sys.settrace(count)
        Registry(folder, create=True).close()

    killed = 0
    for kill_at in range(5, 160, 19):
        child = context.Process(target=make, args=(tmp_path / f"r{kill_at}", kill_at))
        child.start()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        with Registry(tmp_path / f"r{kill_at}", create=True) as registry:
            registry.put(write(1), name="a")
            assert registry.verify().problems == ()
    assert killed > 3
