import errno
import json
import os

import pytest

from ince.errors import DiskFullError
from ince.train.log import RunLog


def test_lines_of_later_steps_and_torn_lines_go_when_a_run_is_resumed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste', encoding="utf-8")
    with RunLog(path, from_step=2) as log:
        log.write(step=3, loss=1.0)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


def test_a_fresh_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n', encoding="utf-8")
    with RunLog(path, from_step=0):
        pass
    assert path.read_text("utf-8") == ""


class FillingDisk:
    """A stream that takes `room` bytes, and no more until it gets more."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num_written = self.stream.write(data[: self.room])
        self.room -= num_written
        return num_written

    def fileno(self):
        return self.stream.fileno()

    def close(self):
        self.stream.close()


def test_on_a_full_disk_lines_wait_and_come_whole_and_in_order(tmp_path):
    path, said = tmp_path / "log.jsonl", []
    with RunLog(path, from_step=0, say=said.append) as log:
        log._stream = FillingDisk(log._stream, room=20)
        for step in range(1, 5):
            log.write(step=step, name="ağaç")
        with pytest.raises(DiskFullError, match="log cannot be written"):
            log.sync()
        log._stream.room = 10_000
        log.write(step=5)
        log.sync()
    assert len(said) == 1
    assert "No space left" in said[0]
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_disk_that_stays_full_ends_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, from_step=0) as log:
        log.write(step=1)
        log._stream = FillingDisk(log._stream, room=3)
        log.write(step=2)
    with RunLog(path, from_step=1):
        pass
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [{"step": 1}]


def test_half_a_character_from_somebodys_data_is_logged_as_an_escape(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, from_step=0) as log:
        log.write(step=1, samples=["\ud83d"])
    assert json.loads(path.read_text("utf-8"))["samples"] == ["\ud83d"]
