"""Files written whole: readers see the old bytes or the new ones, and nothing is left behind."""

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import CorruptFileError, DiskFullError, InputError, OutputError
from ince.files import (
    move_folder,
    read_json,
    replace_file,
    replace_folder,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------- files


def test_a_new_file_gets_its_folders(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "ağaç\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ağaç\n".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_a_file_is_replaced(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    write_json(target, {"a": 2})
    assert read_json(target) == {"a": 2}
    assert names(tmp_path) == ["x.json"]


def test_the_mode_is_that_of_the_users_other_files(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_the_mode_holds_when_the_writer_makes_a_file_of_its_own(tmp_path):
    with replace_file(tmp_path / "ours") as temporary:
        private = tmp_path / "private"
        private.touch(mode=0o600)
        private.replace(temporary)
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "x.txt"
    write_text(target, "old")

    def write_half():
        with replace_file(target) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("step", ["fsync", "open"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    target = tmp_path / "x.txt"
    write_text(target, "old")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(DiskFullError) as caught:
        write_text(target, "new")
    monkeypatch.undo()
    assert str(target) in str(caught.value)
    assert caught.value.exit_code == 1
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_the_caller_writes(tmp_path, number):
    def write():
        with replace_file(tmp_path / "x"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFullError):
        write()
    assert names(tmp_path) == []


def test_a_full_disk_said_in_words_only(tmp_path):
    # How writers in other languages report it: an error of theirs, without a number.
    def write():
        with replace_folder(tmp_path / "x"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFullError):
        write()
    assert names(tmp_path) == []


if Path("/dev/full").exists():  # Linux

    def test_a_device_that_is_really_full(tmp_path):
        def write():
            with replace_file(tmp_path / "x"), Path("/dev/full").open("w") as stream:
                stream.write("some bytes")
                stream.flush()

        with pytest.raises(DiskFullError):
            write()
        assert names(tmp_path) == []


def test_an_error_of_the_callers_stays_what_it_is(tmp_path):
    def write():
        with replace_file(tmp_path / "x"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError, match="missing"):
        write()


@pytest.mark.parametrize("write", [write_text, lambda target, _text: make_folder(target)])
def test_a_target_below_a_file_is_refused(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write here"):
        write(tmp_path / "file" / "x", "text")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write here"):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


def test_a_name_that_no_file_system_takes_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot write here"):
        write_text(tmp_path / ("x" * 300), "text")
    assert names(tmp_path) == []


def test_the_longest_name_that_fits_is_written(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert names(tmp_path) == ["x" * 255]


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so the refusal is played.
    def denied(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match="Permission denied"):
        write_text(tmp_path / "x", "text")


# ----------------------------------------------------------------------------------- folders


def make_folder(target: Path, **files: str) -> None:
    with replace_folder(target) as temporary:
        for name, text in files.items():
            path = temporary / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_written_and_replaced_whole(tmp_path):
    target = tmp_path / "out" / "adapter"
    make_folder(target, a="1", sub__b="2")
    assert contents(target) == {"a": "1", "sub/b": "2"}
    make_folder(target, c="3")
    assert contents(target) == {"c": "3"}
    assert names(tmp_path / "out") == ["adapter"]


def test_the_folder_is_as_readable_as_any(tmp_path):
    (tmp_path / "plain").mkdir()
    make_folder(tmp_path / "ours")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    make_folder(tmp_path / "x", a="old")

    def write_half():
        with replace_folder(tmp_path / "x") as temporary:
            (temporary / "a").write_text("new")
            raise error

    with pytest.raises(error):
        write_half()
    assert contents(tmp_path) == {"x/a": "old"}
    assert names(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch):
    make_folder(tmp_path / "x", a="old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DiskFullError):
        make_folder(tmp_path / "x", a="new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"x/a": "old"}
    assert names(tmp_path) == ["x"]


def test_the_old_folder_returns_when_the_second_rename_fails(tmp_path, monkeypatch):
    make_folder(tmp_path / "x", a="old")
    rename = Path.replace

    def fail_on_temporary(self, target):
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_temporary)
    with pytest.raises(OSError, match="Input/output"):
        make_folder(tmp_path / "x", a="new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"x/a": "old"}
    assert names(tmp_path) == ["x"]


def test_a_read_only_file_and_a_dangling_link_may_be_in_it(tmp_path):
    with replace_folder(tmp_path / "x") as temporary:
        (temporary / "a").write_text("1")
        (temporary / "a").chmod(0o444)
        (temporary / "link").symlink_to("nowhere")
    assert names(tmp_path / "x") == ["a", "link"]


def test_a_link_to_a_folder_is_replaced_and_its_folder_stays(tmp_path):
    make_folder(tmp_path / "real", a="kept")
    (tmp_path / "x").symlink_to("real")
    make_folder(tmp_path / "x", a="new")
    assert contents(tmp_path / "x") == {"a": "new"}
    assert contents(tmp_path / "real") == {"a": "kept"}
    assert names(tmp_path) == ["real", "x"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="a file where a folder"):
        make_folder(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("target", [".", "..", "../here"])
def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch, target):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match="working in"):
        make_folder(Path(target))
    assert names(tmp_path) == ["here"]


WRITE_FOREVER = """
import sys
from pathlib import Path
from ince.files import replace_folder, write_text
root = Path(sys.argv[1])
number = 0
while True:
    number += 1
    write_text(root / "file", str(number) * 5000)
    with replace_folder(root / "folder") as temporary:
        for part in range(5):
            (temporary / str(part)).write_text(str(number))
    if number == 5:
        print("ready", flush=True)
"""


def test_a_killed_writer_leaves_whole_results(tmp_path):
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            threading.Event().wait(0.01 * (attempt + 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
        text = (tmp_path / "file").read_text()
        assert len(text) % 5000 == 0
        assert text == text[: len(text) // 5000] * 5000
        # Between the two renames the folder stands beside, under a hidden name.
        kept = [tmp_path / "folder", *tmp_path.glob(".folder.*.old")]
        whole = [path for path in kept if path.exists() and len(names(path)) == 5]
        assert whole
        assert len({path.read_text() for path in whole[0].iterdir()}) == 1


def test_writers_at_once_do_not_mix(tmp_path):
    def write(number):
        for _ in range(20):
            write_json(tmp_path / "x.json", {"number": number, "filling": [number] * 500})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    value = read_json(tmp_path / "x.json")
    assert value["filling"] == [value["number"]] * 500
    assert names(tmp_path) == ["x.json"]


# -------------------------------------------------------------------------- JSON and digests

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Halves of characters too: they reach us through escapes in other people's JSON.
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters()), json_values))
@settings(max_examples=50, deadline=None)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a": 1', b"\xff\xfe\xff", b"[" * 100_000, b"\x00" * 10],
)
def test_what_is_no_json_is_called_corrupt(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CorruptFileError, match="not readable as JSON") as caught:
        read_json(tmp_path / "x.json")
    assert "x.json" in str(caught.value)
    assert caught.value.do


@pytest.mark.parametrize("value", [[], "text", 3, None])
def test_json_that_is_no_object_is_called_corrupt(tmp_path, value):
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(CorruptFileError, match="not a JSON object"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("read", [read_json, sha256_file])
def test_reading_what_is_not_there(tmp_path, read):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot read this file"):
        read(tmp_path)


def test_digests(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_a_folder_moves_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a" / "x", "1")
    (tmp_path / "there").mkdir()
    move_folder(tmp_path / "a", tmp_path / "there" / "b")
    assert (tmp_path / "there" / "b" / "x").read_text() == "1"
    assert not (tmp_path / "a").exists()
    write_text(tmp_path / "c" / "x", "2")
    with pytest.raises(InputError, match="not empty"):
        move_folder(tmp_path / "c", tmp_path / "there" / "b")
    assert (tmp_path / "c" / "x").read_text() == "2"
