import json
import shutil

import pytest
import torch

from ince.errors import CorruptFileError
from ince.train.checkpoint import latest_checkpoint, remove_old, save_checkpoint
from ince.train.state import TrainState


def save(folder, step):
    return save_checkpoint(
        folder,
        tensors={
            "adapter": {"a": torch.full((3,), float(step))},
            "optimizer": {"a.exp_avg": torch.ones(3)},
        },
        state=TrainState("digest", step=step, num_tokens=10 * step),
    )


def read(folder):
    said = []
    return latest_checkpoint(folder, warn=said.append), said


def test_the_newest_one_is_read_back(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 10)
    found, said = read(tmp_path)
    assert found.state == TrainState("digest", step=10, num_tokens=100)
    assert found.tensors["adapter"]["a"].tolist() == [10, 10, 10]
    assert said == []


def test_there_may_be_none(tmp_path):
    assert read(tmp_path) == (None, [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "adapter.safetensors").write_bytes(b"\0" * 8),
        lambda f: (f / "optimizer.safetensors").unlink(),
        lambda f: (f / "state.json").write_text("{}"),
        lambda f: (f / "manifest.json").write_text('{"adapter'),
        lambda f: (f / "manifest.json").unlink(),
        lambda f: _flip(f / "adapter.safetensors"),
        lambda f: _flip(f / "state.json"),
        lambda f: (f / "adapter.safetensors").rename(f / "optimizer.safetensors"),
        lambda f: _of_another_step(f),  # noqa: PLW0108  defined below
        lambda f: _cut(f / "optimizer.safetensors"),
        lambda f: (f / "manifest.json").write_text("{}"),
    ],
    ids=[
        "short",
        "missing",
        "altered",
        "torn manifest",
        "no manifest",
        "flipped bit",
        "flipped bit in the state",
        "swapped",
        "of another step",
        "truncated",
        "empty manifest",
    ],
)
def test_a_damaged_one_is_passed_over_with_a_line(tmp_path, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    found, said = read(tmp_path)
    assert found.state.step == 1
    assert len(said) == 1
    assert "step-000002" in said[0]


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _of_another_step(folder):
    """Whole in itself, but not what its name says."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-000001", folder)


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    folder = save(tmp_path, 1)
    torn = folder.parent / ".step-000002.0123456789ab.tmp"
    shutil.copytree(folder, torn)
    (torn / "manifest.json").unlink()
    found, said = read(tmp_path)
    assert (found.state.step, said) == (1, [])
    assert not torn.exists()


def test_what_does_not_read_back_is_not_taken_for_saved(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr("ince.train.checkpoint.write_group", lambda p, _g: p.write_bytes(b"ab"))
    digests = iter("abcdef")
    monkeypatch.setattr("ince.train.checkpoint.sha256_file", lambda _p: next(digests))
    with pytest.raises(CorruptFileError, match="not what was written"):
        save(tmp_path, 2)
    monkeypatch.undo()
    found, said = read(tmp_path)
    assert found.state.step == 1
    assert "step-000002" in said[0]


def test_when_none_is_whole_it_says_what_to_do(tmp_path):
    folder = save(tmp_path, 1)
    (folder / "state.json").unlink()
    with pytest.raises(CorruptFileError, match="--fresh"):
        read(tmp_path)


def test_a_manifest_that_lies_about_the_content_is_caught(tmp_path):
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["adapter.safetensors"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError):
        read(tmp_path)


def test_old_ones_go_and_foreign_folders_stay(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-best").mkdir()
    remove_old(tmp_path, keep=2, keep_best=False, whole=set())
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-000002", "step-000003", "step-best"]


def test_damaged_ones_do_not_count_among_the_kept_and_go(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    _flip(tmp_path / "checkpoints" / "step-000008" / "adapter.safetensors")
    _flip(tmp_path / "checkpoints" / "step-000004" / "state.json")
    known = {save(tmp_path, 6)}
    remove_old(tmp_path, keep=2, keep_best=False, whole=known)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-000002", "step-000006"]
    assert {p.name for p in known} == set(left)


def test_the_last_good_one_stays_whatever_is_newer(tmp_path):
    save(tmp_path, 1)
    for step in (2, 3):
        (save(tmp_path, step) / "manifest.json").unlink()
    remove_old(tmp_path, keep=1, keep_best=False, whole=set())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_where_none_is_whole_none_is_removed(tmp_path):
    (save(tmp_path, 1) / "manifest.json").unlink()
    remove_old(tmp_path, keep=1, keep_best=False, whole=set())
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
