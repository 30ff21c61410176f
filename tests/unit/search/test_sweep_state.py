import json

import pytest

from ince.errors import CorruptFileError, OutputError
from ince.search.sweep_state import SWEEP_FORMAT, SweepState

IDENTITY = {"candidates": "a", "halving": "b", "data": "c"}


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    content = {
        "format": SWEEP_FORMAT,
        "identity": IDENTITY,
        "rungs": [],
        "candidates": [{"name": "r=1", "num_steps": 3, "losses": []}],
        "status": "running",
    }
    (folder / "sweep.json").write_text(json.dumps(content | changes), "utf-8")


def test_nothing_there_is_a_place_to_begin(tmp_path):
    assert SweepState.open(tmp_path / "new", identity=IDENTITY) is None
    (tmp_path / "empty").mkdir()
    assert SweepState.open(tmp_path / "empty", identity=IDENTITY) is None


def test_the_same_sweep_is_read_back(tmp_path):
    write(tmp_path)
    state = SweepState.open(tmp_path, identity=IDENTITY)
    assert state.candidates[0]["name"] == "r=1"


@pytest.mark.parametrize(("part", "word"), [("candidates", "candidates"), ("data", "data")])
def test_another_sweep_is_left_alone(tmp_path, part, word):
    write(tmp_path)
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(OutputError, match="another sweep") as caught:
        SweepState.open(tmp_path, identity=IDENTITY | {part: "other"})
    assert f"other {word}" in caught.value.got
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone_even_when_fresh(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(OutputError, match="thesis.txt"):
            SweepState.open(tmp_path, identity=IDENTITY, fresh=fresh)
    write(tmp_path)
    with pytest.raises(OutputError, match="thesis.txt"):
        SweepState.open(tmp_path, identity=IDENTITY, fresh=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        SweepState.open(tmp_path / "x", identity=IDENTITY)


def test_fresh_removes_the_sweep_and_nothing_outside_of_it(tmp_path):
    folder = tmp_path / "sweep"
    write(
        folder,
        candidates=[
            {"name": name, "num_steps": 3, "losses": []} for name in ("r=1", "../kept", "link")
        ],
    )
    (folder / "r=1").mkdir()
    (folder / "r=1" / "run.json").write_text("{}")
    (folder / "best.yaml").write_text("")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (folder / "link").symlink_to(tmp_path / "kept")
    assert SweepState.open(folder, identity={"candidates": "x"}, fresh=True) is None
    assert list(folder.iterdir()) == []
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.parametrize(
    "changes",
    [{"format": "other"}, {"candidates": [3]}, {"identity": None}, {"rungs": 7}],
)
def test_a_state_that_is_not_whole_is_said_and_can_be_cleared(tmp_path, changes):
    write(tmp_path, **changes)
    with pytest.raises(CorruptFileError):
        SweepState.open(tmp_path, identity=IDENTITY)
    (tmp_path / "r=1").mkdir()
    (tmp_path / "r=1" / "run.json").write_text("{}")
    assert SweepState.open(tmp_path, identity=IDENTITY, fresh=True) is None
    assert list(tmp_path.iterdir()) == []
