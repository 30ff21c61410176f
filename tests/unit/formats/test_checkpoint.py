"""Safetensors checkpoints: read one tensor at a time, and refused when damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.checkpoint import Checkpoint, iter_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "c": torch.tensor([[7]], dtype=torch.int64),
}
INDEX = "model.safetensors.index.json"


def write_single(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_shards(folder: Path) -> Path:
    save_file({"a": TENSORS["a"], "c": TENSORS["c"]}, folder / "one.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "two.safetensors")
    write_index(folder, {"a": "one.safetensors", "c": "one.safetensors", "b": "two.safetensors"})
    return folder


@pytest.mark.parametrize("write", [write_single, write_shards])
def test_every_tensor_is_read_once(write, tmp_path: Path) -> None:
    read = list(iter_tensors(write(tmp_path)))
    assert sorted(name for name, _ in read) == ["a", "b", "c"]
    for name, tensor in read:
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_headers_give_shapes_before_any_data(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_shards(tmp_path))
    assert {n: e.shape for n, e in checkpoint.entries.items()} == {
        "a": (2, 3),
        "b": (4,),
        "c": (1, 1),
    }
    assert torch.equal(checkpoint.tensor("b"), TENSORS["b"])


def test_index_wins_over_a_single_file(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert set(Checkpoint(write_shards(tmp_path)).entries) == set(TENSORS)


def test_missing_shard(tmp_path: Path) -> None:
    (write_shards(tmp_path) / "two.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"(?s)1 of 2 weight files.*two\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    path = write_single(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match="not readable as safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors", "c": "one.safetensors"}, "in a weight file but not in the index"),
        (
            {
                "a": "one.safetensors",
                "c": "one.safetensors",
                "b": "two.safetensors",
                "z": "two.safetensors",
            },
            "listed in the index but in no weight file",
        ),
        (
            {"a": "two.safetensors", "c": "one.safetensors", "b": "two.safetensors"},
            "another weight file",
        ),
        ({}, "no weight_map"),
        (["a"], "no weight_map"),
    ],
)
def test_index_that_disagrees(tmp_path: Path, weight_map: object, message: str) -> None:
    write_shards(tmp_path)
    if weight_map and "b" not in weight_map:
        save_file(TENSORS, tmp_path / "one.safetensors")
    write_index(tmp_path, weight_map)
    with pytest.raises(CorruptFileError, match=message):
        Checkpoint(tmp_path)


def test_tensor_stored_twice(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file(TENSORS, tmp_path / "two.safetensors")
    with pytest.raises(CorruptFileError, match="stored twice"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("target", ["../one.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_index_cannot_reach_outside_the_folder(tmp_path: Path, target: object) -> None:
    write_shards(tmp_path)
    write_index(tmp_path, {"a": target})
    with pytest.raises(CorruptFileError, match="outside the model's folder"):
        Checkpoint(tmp_path)


def test_pickles_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(ModelReferenceError, match=r"(?s)pickle.*pytorch_model\.bin.*safetensors"):
        Checkpoint(tmp_path)
    write_index(tmp_path, {"a": "pytorch_model.bin"})
    with pytest.raises(ModelReferenceError, match="not safetensors"):
        Checkpoint(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError, match="no model weights"):
        Checkpoint(tmp_path)
