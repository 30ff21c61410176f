"""Digests are remembered while a file stays, and never longer."""

import os
from pathlib import Path

import pytest

from ince.files import sha256_bytes
from ince.models import cache
from ince.models.cache import cache_folder, file_digest, folder_digest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folder_is_chosen_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("INCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/shared/ince")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ince"


def test_digest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    assert file_digest(file) == sha256_bytes(b"one")
    monkeypatch.setattr(cache, "sha256_file", lambda _: pytest.fail("read again"))
    assert file_digest(file) == sha256_bytes(b"one")


def test_digest_follows_size_time_and_demand(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    file_digest(file)
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_digest(file) == sha256_bytes(b"one")  # the same size at the same time
    assert file_digest(file, verify=True) == sha256_bytes(b"two")
    file.write_bytes(b"three")
    assert file_digest(file) == sha256_bytes(b"three")


def test_damaged_memory_is_ignored(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    file_digest(file)
    for memory in (folder / "digests").iterdir():
        memory.write_text("[]")
    assert file_digest(file) == sha256_bytes(b"one")


def test_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    monkeypatch.setenv("INCE_CACHE", str(file / "below"))
    assert file_digest(file) == sha256_bytes(b"one")


def test_folder_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    both = folder_digest(tmp_path, ["a", "b"])
    assert folder_digest(tmp_path, ["b", "a"]) == both
    (tmp_path / "a").write_bytes(b"2")
    (tmp_path / "b").write_bytes(b"1")
    assert folder_digest(tmp_path, ["a", "b"]) != both
