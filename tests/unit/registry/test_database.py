"""The database file: several writers, damage, other files, another ince, folders to read only."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ince.errors import CorruptFileError, InceError, InputError, OutputError
from ince.registry import Registry
from ince.registry.database import DATABASE_FILE


def test_a_folder_without_a_registry_is_said(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="there is no registry here"):
            Registry(folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="this is something else"):
        Registry(tmp_path, create=True)
    with pytest.raises(OutputError, match="this is something else"):
        Registry(tmp_path / "notes.txt", create=True)
    with pytest.raises(InputError, match="cannot be made here"):
        Registry(tmp_path / "notes.txt" / "r", create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_database_of_others_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / DATABASE_FILE) as theirs:
        theirs.execute("CREATE TABLE adapters (digest TEXT)")
    theirs.close()
    for create in (False, True):
        with pytest.raises(InputError, match="this database is no registry"):
            Registry(tmp_path, create=create)


def test_a_registry_of_a_newer_ince_is_refused(tmp_path):
    Registry(tmp_path / "r", create=True).close()
    with sqlite3.connect(tmp_path / "r" / DATABASE_FILE) as direct:
        direct.execute("PRAGMA user_version = 2")
    direct.close()
    with pytest.raises(InputError, match="written by a newer ince"):
        Registry(tmp_path / "r")


def test_a_registry_that_was_closed_says_so(tmp_path):
    registry = Registry(tmp_path / "r", create=True)
    registry.close()
    registry.close()
    for ask in (registry.version, lambda: registry.remove("a")):
        with pytest.raises(InceError, match="was closed"):
            ask()


def test_a_making_that_was_cut_off_is_made_anew(tmp_path):
    (tmp_path / DATABASE_FILE).touch()
    with pytest.raises(InputError, match="cut off is made anew by"):
        Registry(tmp_path)
    with Registry(tmp_path, create=True) as registry:
        assert registry.verify().problems == ()


@pytest.mark.parametrize("spoil", ["garbage", "cut", "table"])
def test_a_damaged_database_is_said(tmp_path, write, spoil):
    with Registry(tmp_path / "r", create=True) as registry:
        registry.put(write(1), name="a")
    path = tmp_path / "r" / DATABASE_FILE
    whole = path.read_bytes()
    if spoil == "garbage":
        path.write_bytes(os.urandom(len(whole)))
    elif spoil == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        with sqlite3.connect(path) as direct:
            direct.execute("DROP TABLE usage")
        direct.close()
    with pytest.raises(CorruptFileError, match="database is damaged"):
        Registry(tmp_path / "r")


@pytest.mark.parametrize(
    ("change", "ask"),
    [
        ("UPDATE adapters SET num_bytes = 'many'", lambda registry: registry.entries()),
        ("UPDATE adapters SET config = '[1]'", lambda registry: registry.entries()),
        ("UPDATE adapters SET config = '{'", lambda registry: registry.entries()),
        ("UPDATE adapters SET created = x'ff'", lambda registry: registry.entries()),
        ("UPDATE versions SET digest = x'00'", lambda registry: registry.names()),
        ("UPDATE adapters SET created = cast(x'ff' AS TEXT)", lambda registry: registry.entries()),
    ],
)
def test_a_row_that_is_not_what_was_written_is_damage(tmp_path, write, change, ask):
    with Registry(tmp_path / "r", create=True) as registry:
        registry.put(write(1), name="a")
        with sqlite3.connect(tmp_path / "r" / DATABASE_FILE) as direct:
            direct.execute(change)
        direct.close()
        with pytest.raises(CorruptFileError, match="database is damaged"):
            ask(registry)


def _publish(folder, sources, barrier, pipe):
    # Even the making of the registry is a race.
    barrier.wait()
    with Registry(folder, create=True) as registry:
        for source in sources:
            registry.put(source, name="shared")
            registry.put(source, name=f"own-{os.getpid()}")
        try:
            registry.gc(keep=10)
        except InceError as error:
            pipe.send(str(error))
    pipe.send(os.getpid())


def test_a_registry_that_another_makes_at_the_same_moment_is_opened(tmp_path, monkeypatch):
    folder, listed = tmp_path / "r", Path.iterdir
    folder.mkdir()

    def made_meanwhile(path):
        if path == folder:
            monkeypatch.undo()
            Registry(folder, create=True).close()
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", made_meanwhile)
    with Registry(folder, create=True) as registry:
        assert registry.verify().problems == ()


def test_several_processes_change_one_registry(tmp_path, write):
    sources = [write(seed) for seed in range(3)]
    context = multiprocessing.get_context("fork")
    barrier, (ours, theirs) = context.Barrier(3), context.Pipe(duplex=False)
    children = [
        context.Process(target=_publish, args=(tmp_path / "r", sources, barrier, theirs))
        for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    told = {ours.recv() for _ in children}
    with Registry(tmp_path / "r") as registry:
        found = registry.verify()
        assert (found.num_adapters, found.problems) == (3, ())
        assert {alias.name for alias in registry.names()} == {"shared"} | {
            f"own-{pid}" for pid in told
        }
        ids = [each.id for each in registry.audit()]
        assert ids == list(range(1, len(ids) + 1))
        numbers = [version.number for version in registry.history("shared")]
        assert numbers == list(range(len(numbers), 0, -1))


def test_threads_read_while_one_writes(tmp_path, write):
    with Registry(tmp_path / "r", create=True) as registry:
        known = {registry.put(write(seed), name="a") for seed in (1, 2)}
        wrong: list[object] = []
        done = threading.Event()

        def read():
            while not done.is_set():
                digest = registry.resolve("a")
                if digest not in known or not registry.folder(digest).is_dir():
                    wrong.append(digest)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for digest in sorted(known) * 10:
            registry.alias("a", digest)
        done.set()
        for reader in readers:
            reader.join()
        assert wrong == []


def test_a_writer_that_holds_on_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("ince.registry.database._BUSY_SECONDS", 0.05)
    with Registry(tmp_path / "r", create=True) as registry:
        other = sqlite3.connect(tmp_path / "r" / DATABASE_FILE)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InceError, match="another process has kept the registry"):
            registry.tenants.add_tenant("acme")
        assert registry.tenants.tenants() == []
        other.close()
        registry.tenants.add_tenant("acme")


READ_ONLY = """
import os, sys
from pathlib import Path
from ince.errors import InputError
from ince.registry import Registry
if os.getuid() == 0:
    os.setuid(65534)
with Registry(Path(sys.argv[1])) as registry:
    assert registry.resolve("a") == sys.argv[2]
    assert len(registry.entries()) == 1
    assert registry.folder(sys.argv[2]).is_dir()
    try:
        registry.remove("a")
    except InputError as error:
        assert "may only be read" in str(error), error
    else:
        sys.exit("it was changed")
"""


@pytest.mark.parametrize("in_use", [False, True])
def test_a_folder_that_may_only_be_read_is_read(tmp_path, write, in_use):
    folder = tmp_path / "r"
    registry = Registry(folder, create=True)
    digest = registry.put(write(1), name="a")
    if not in_use:
        registry.close()
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == tmp_path.owner() and path != path.parent:
            path.chmod(path.stat().st_mode | 0o055)
        if path.name.startswith("pytest-of"):
            break
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder), digest],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        registry.close()
