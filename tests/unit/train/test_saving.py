"""A checkpoint that cannot be saved is tried again, and what is missing is said."""

import errno
import os
import time
from collections import namedtuple

import pytest
from safetensors import SafetensorError

from ince.errors import CorruptFileError, DiskFullError, TrainingError
from ince.train import saving
from ince.train.saving import save_patiently

KIB = 1024


class Disk:
    """A `save` that fails with each of `errors`, then succeeds; and naps that are noted."""

    def __init__(self, folder, monkeypatch, errors=()):
        self.folder, self.errors, self.naps, self.lines, self.asked = folder, [*errors], [], [], []
        self.tries = 0
        monkeypatch.setattr(saving, "_sleep", lambda seconds, _stopped: self.naps.append(seconds))
        usage = namedtuple("usage", "total used free")(10 * KIB, 6 * KIB, 4 * KIB)
        monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)

    def save(self):
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.folder

    def run(self, *, retries=3, num_bytes=10 * KIB, stopped=lambda: False):
        return save_patiently(
            self.save,
            folder=self.folder / "checkpoints",
            num_bytes=num_bytes,
            retries=retries,
            wait_seconds=5,
            good="after step 40",
            say=self.lines.append,
            stopped=stopped,
        )


def full():
    return DiskFullError("no space left on the device")


def test_nothing_is_said_when_all_is_well(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    assert disk.run() == tmp_path
    assert (disk.tries, disk.lines) == (1, [])


@pytest.mark.parametrize(
    "error",
    [
        full(),
        CorruptFileError("a checkpoint file is not what was written"),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        SafetensorError("I/O error: Input/output error (os error 5)"),
    ],
    ids=["full", "not read back", "input/output error", "another writer's"],
)
def test_it_pauses_says_what_is_missing_and_goes_on(tmp_path, monkeypatch, error):
    disk = Disk(tmp_path, monkeypatch, [error, error])
    assert disk.run() == tmp_path
    assert disk.naps == [5, 10]
    assert len(disk.lines) == 2
    assert "takes 10.0 KiB, 4.00 KiB are free, 6.00 KiB are missing" in disk.lines[0]
    assert "pauses for 5.0 s" in disk.lines[0]


def test_patience_ends_with_a_word_on_where_it_goes_on(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch, [full()] * 9)
    with pytest.raises(DiskFullError, match="goes on after step 40") as caught:
        disk.run(retries=2)
    assert caught.value.exit_code == 1
    assert "missing" in caught.value.got
    assert disk.tries == 3


def test_a_disk_that_fails_otherwise_is_not_called_full(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch, [OSError(errno.EIO, "Input/output error")] * 9)
    with pytest.raises(TrainingError, match="goes on after step 40"):
        disk.run(retries=0)


def test_a_quota_is_guessed_where_the_disk_has_room(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch, [full()])
    disk.run(num_bytes=3 * KIB)
    assert "quota" in disk.lines[0]


def test_other_errors_are_not_waited_for(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch, [ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        disk.run()
    assert disk.naps == []


def test_who_asks_to_stop_gets_one_more_attempt_and_no_more_waiting(tmp_path, monkeypatch):
    asked = iter([False, True])
    disk = Disk(tmp_path, monkeypatch, [full()] * 9)
    with pytest.raises(DiskFullError):
        disk.run(stopped=lambda: next(asked))
    assert disk.tries == 2


def test_a_wait_ends_when_it_is_asked_to():
    started = time.monotonic()
    saving._sleep(60, lambda: True)
    saving._sleep(0.02, lambda: False)
    assert 0.02 <= time.monotonic() - started < 10
