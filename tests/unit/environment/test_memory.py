import subprocess
import sys

import pytest

from ince.environment import Unknown
from ince.environment import memory as module
from ince.environment.memory import read_cache, read_memory

GIB = 2**30


@pytest.fixture
def linux(monkeypatch, tmp_path):
    """A machine of 64 GiB, 48 of them free, and the control groups of a test."""
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable:   {48 * 2**20} kB\n")
    group.write_text("0::/app/task\n")
    root = tmp_path / "groups"
    (root / "app" / "task").mkdir(parents=True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module, "_MEMINFO", meminfo)
    monkeypatch.setattr(module, "_CGROUP", group)
    monkeypatch.setattr(module, "_CGROUP_ROOT", root)
    monkeypatch.setattr(module, "hardware", lambda: {"memory_bytes": 64 * GIB})
    return tmp_path


def limit(group, most, used, droppable=0):
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\n")


def in_gib(memory):
    return memory.total_bytes / GIB, memory.free_bytes / GIB


def test_the_machine(linux):
    assert in_gib(read_memory()) == (64, 48)


def test_a_group_without_a_limit(linux):
    limit(linux / "groups" / "app" / "task", "max", 3 * GIB)
    assert in_gib(read_memory()) == (64, 48)


def test_the_limit_of_a_group_counts(linux):
    limit(linux / "groups" / "app" / "task", 8 * GIB, 3 * GIB, droppable=GIB)
    assert in_gib(read_memory()) == (8, 6)


def test_so_does_the_limit_of_a_group_around_it(linux):
    limit(linux / "groups" / "app" / "task", 8 * GIB, GIB)
    limit(linux / "groups" / "app", 10 * GIB, 7 * GIB)
    assert in_gib(read_memory()) == (8, 3)


def test_a_group_beyond_its_limit_has_nothing_free(linux):
    limit(linux / "groups" / "app" / "task", GIB, 2 * GIB)
    assert read_memory().free_bytes == 0


def test_a_machine_without_groups(linux):
    (linux / "cgroup").unlink()
    assert in_gib(read_memory()) == (64, 48)


@pytest.mark.parametrize("content", ["MemTotal: 5 kB\n", None])
def test_what_the_system_does_not_tell_is_unknown(linux, content):
    (linux / "meminfo").unlink()
    if content is not None:
        (linux / "meminfo").write_text(content)
    memory = read_memory()
    assert isinstance(memory.free_bytes, Unknown)
    assert memory.total_bytes == 64 * GIB


def test_a_mac(monkeypatch):
    told = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                  100.\nPages active:               900.\n"
        "Pages inactive:              20.\nPages speculative:           3.\n"
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    done = subprocess.CompletedProcess("vm_stat", 0, told, "")
    monkeypatch.setattr(subprocess, "run", lambda *_a, **_k: done)
    assert read_memory().free_bytes == 123 * 16384
    done.stdout = "something else"
    assert isinstance(read_memory().free_bytes, Unknown)


def test_the_cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    (folder / "models").mkdir(parents=True)
    (folder / "a").write_bytes(b"12345")
    (folder / "models" / "b").write_bytes(b"123")
    (folder / "models" / "link").symlink_to(folder / "a")
    (folder / "models" / "round").symlink_to(folder)
    monkeypatch.setenv("INCE_CACHE", str(folder))
    cache = read_cache()
    assert (cache.folder, cache.size_bytes, cache.num_files) == (folder, 8, 2)
    assert 0 <= cache.disk_free_bytes <= cache.disk_total_bytes


def test_a_cache_that_is_not_there_is_not_made(monkeypatch, tmp_path):
    folder = tmp_path / "none" / "yet"
    monkeypatch.setenv("INCE_CACHE", str(folder))
    cache = read_cache()
    assert (cache.size_bytes, cache.num_files) == (0, 0)
    assert cache.disk_total_bytes > 0
    assert not folder.parent.exists()


def test_a_cache_that_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "file"))
    cache = read_cache()
    assert "NotADirectoryError" in cache.size_bytes.reason
    assert cache.disk_total_bytes > 0
