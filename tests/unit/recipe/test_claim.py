"""A run folder belongs to one process, and what killed ones left in it goes."""

import subprocess
import sys

import pytest

from ince.errors import InputError, OutputError
from ince.recipe.claim import claimed

PROGRAM = """
import sys
from pathlib import Path
from ince.recipe.claim import claimed

with claimed(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_one_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "mine\n"
    (tmp_path / ".run.json.0123456789ab.tmp").touch()
    with pytest.raises(OutputError, match="another process") as caught, claimed(tmp_path):
        pytest.fail("two processes hold one folder")
    assert caught.value.exit_code == 2
    assert len(list(tmp_path.iterdir())) == 1
    first.kill()
    first.communicate()
    with claimed(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path):  # given back
        pass


def test_the_folder_is_made(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make"), claimed(tmp_path / "file" / "run"):
        pytest.fail("there is no such folder")


def test_without_locks_it_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path):
        pass
