"""A file counts when it is as it was written, under the same facts."""

import json
import os
from pathlib import Path

import pytest
import torch

from ince.errors import DiskFullError
from ince.formats.writer import PlannedTensor, write_safetensors
from ince.models.packed_manifest import MANIFEST, PackedFolder, key_of
from ince.models.packed_shards import Shard

FACTS = {"weights": "abc", "quantization": {"blocksize": 64}}
SHARDS = [
    Shard({"a": (PlannedTensor("a", (64,), torch.uint8),)}),
    Shard({"b": (PlannedTensor("b", (4, 4), torch.float32),)}),
]


def write(folder: PackedFolder, number: int) -> None:
    (planned,) = SHARDS[number].plan
    tensor = torch.arange(64).to(planned.dtype)[: planned.num_bytes // planned.dtype.itemsize]
    write_safetensors(folder.path_of(number), SHARDS[number].plan, [tensor.reshape(planned.shape)])
    folder.add(number)


@pytest.fixture
def folder(tmp_path: Path) -> PackedFolder:
    folder = PackedFolder(tmp_path / "packed", FACTS, SHARDS)
    folder.begin(0)
    return folder


def test_files_are_believed_one_by_one(folder: PackedFolder) -> None:
    assert not folder.finished
    write(folder, 1)
    again = PackedFolder(folder.folder, FACTS, SHARDS)
    assert set(again.finished) == {1}
    assert again.tensors(1)["b"].shape == (4, 4)
    write(again, 0)
    assert set(PackedFolder(folder.folder, FACTS, SHARDS).finished) == {0, 1}


def test_other_facts_and_other_plans_believe_nothing(folder: PackedFolder) -> None:
    write(folder, 0)
    write(folder, 1)
    assert not PackedFolder(folder.folder, {**FACTS, "weights": "x"}, SHARDS).finished
    other = [Shard({"b": (PlannedTensor("b", (16,), torch.float32),)})]
    assert set(PackedFolder(folder.folder, FACTS, [SHARDS[0], *other]).finished) == {0}


def test_touched_files_are_believed_by_their_digest(folder: PackedFolder) -> None:
    write(folder, 0)
    os.utime(folder.path_of(0))
    assert PackedFolder(folder.folder, FACTS, SHARDS).finished
    assert not PackedFolder(folder.folder, FACTS, SHARDS, is_hashed=False).finished
    data = bytearray(folder.path_of(0).read_bytes())
    data[-1] ^= 1
    folder.path_of(0).write_bytes(data)
    assert not PackedFolder(folder.folder, FACTS, SHARDS).finished


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"files": 3}', "\ud800", '{"files": {"a": 1}}']
)
def test_garbled_manifest_is_none(folder: PackedFolder, text: str) -> None:
    write(folder, 0)
    manifest = json.loads((folder.folder / MANIFEST).read_text())
    if text.startswith('{"files"'):
        text = json.dumps({**manifest, **json.loads(text)})
    (folder.folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not PackedFolder(folder.folder, FACTS, SHARDS).finished


def test_what_is_not_finished_is_removed(folder: PackedFolder) -> None:
    write(folder, 0)
    (folder.folder / ".half.tmp").write_text("x")
    folder.path_of(1).write_text("x")
    again = PackedFolder(folder.folder, FACTS, SHARDS)
    again.begin(1)
    assert {path.name for path in folder.folder.iterdir()} == {MANIFEST, again.path_of(0).name}
    with pytest.raises(DiskFullError):
        again.begin(1 << 70)


def test_settling_under_other_facts(folder: PackedFolder, tmp_path: Path) -> None:
    write(folder, 0)
    write(folder, 1)
    final = {**FACTS, "weights": "final"}
    folder.settle(tmp_path / "final", final)
    assert len(PackedFolder(tmp_path / "final", final, SHARDS).finished) == 2
    assert not (tmp_path / "packed").exists()
    second = PackedFolder(tmp_path / "second", FACTS, SHARDS)
    second.begin(0)
    write(second, 0)
    write(second, 1)
    before = (tmp_path / "final" / MANIFEST).read_bytes()
    second.settle(tmp_path / "final", final)  # what is there is as good
    assert (tmp_path / "final" / MANIFEST).read_bytes() == before
    assert not (tmp_path / "second").exists()


def test_key_follows_all_facts() -> None:
    assert key_of(FACTS) == key_of(dict(reversed(FACTS.items())))
    assert key_of(FACTS) != key_of({**FACTS, "quantization": {"blocksize": 32}})
