"""What writers that were killed left behind goes, or comes back."""

import subprocess
import sys

import pytest

from ince.files import remove_folder, remove_leftovers, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_half_written_files_and_folders_go(tmp_path):
    (tmp_path / ".run.json.0123456789ab.tmp").write_text("{")
    half = tmp_path / ".step-000050.ffffffffffff.tmp"
    half.mkdir()
    (half / "adapter.safetensors").write_bytes(b"x")
    (tmp_path / ".link.0123456789ab.tmp").symlink_to(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["run.json"]


def test_what_was_moved_aside_comes_back_when_nothing_took_its_place(tmp_path):
    for name in ("a", "b"):
        aside = tmp_path / f".{name}.0123456789ab.old"
        aside.mkdir()
        (aside / "x").write_text("old")
    (tmp_path / "b").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path / "b") == []


def test_a_name_that_was_cut_is_kept_rather_than_guessed(tmp_path):
    aside = tmp_path / f".{'n' * 40}.0123456789ab.old"
    aside.mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [aside.name]


@pytest.mark.parametrize(
    "name", [".hidden", "x.tmp", ".x.tmp", ".x.0123.tmp", ".x.0123456789AB.tmp", ".x.y.old"]
)
def test_what_is_of_others_stays(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [name]


def test_a_folder_that_is_not_there_has_nothing_to_clear(tmp_path):
    remove_leftovers(tmp_path / "nowhere")
    assert names(tmp_path) == []


def test_a_writer_killed_between_two_renames_loses_nothing(tmp_path):
    """In a process of its own, which ends as a kill ends it."""
    target = tmp_path / "target"
    write_text(target / "x", "old")
    program = f"""
import os
from pathlib import Path
from ince.files import replace_folder

real, count = Path.replace, 0

def replace(path, place):
    global count
    count += 1
    if count == 2:
        os._exit(9)
    return real(path, place)

Path.replace = replace
with replace_folder(Path({str(target)!r})) as temporary:
    (temporary / "x").write_text("new")
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == 9
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["target"]
    assert (target / "x").read_text() == "old"


def test_a_folder_whose_removal_is_killed_is_not_taken_for_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "step" / "x", "old")

    def killed(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr("ince.files.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "step")
    monkeypatch.undo()
    assert "step" not in names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []
    remove_folder(tmp_path / "nowhere")
