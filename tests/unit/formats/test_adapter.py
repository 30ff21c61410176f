"""The adapter folder: written whole, read checked."""

import errno
import json
import os

import pytest
import torch
from safetensors import safe_open

from ince.errors import AdapterError, CorruptFileError, DiskFullError, InputError
from ince.formats.adapter import adapter_digest, read_adapter, read_base_digest, write_adapter

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}
CONFIG = {"r": 2, "peft_type": "LORA"}


def test_the_round_trip_is_exact(tmp_path):
    write_adapter(tmp_path / "x", CONFIG, TENSORS)
    config, tensors = read_adapter(tmp_path / "x")
    assert config == CONFIG
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_the_files_are_as_peft_writes_them(tmp_path):
    write_adapter(tmp_path / "x", CONFIG, TENSORS)
    text = (tmp_path / "x" / "adapter_config.json").read_text()
    assert text == json.dumps(CONFIG, indent=2, sort_keys=True)
    with safe_open(tmp_path / "x" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_views_and_transposes_are_written_as_their_values(tmp_path):
    big = torch.arange(12.0).view(3, 4)
    write_adapter(tmp_path / "x", CONFIG, {"t": big.t(), "v": big[:, 1], "p": big.t()})
    _, tensors = read_adapter(tmp_path / "x")
    assert torch.equal(tensors["t"], big.t())
    assert torch.equal(tensors["v"], big[:, 1])


def test_rewriting_replaces_and_other_files_stay(tmp_path):
    write_adapter(tmp_path / "x", CONFIG, TENSORS)
    (tmp_path / "x" / "README.md").write_text("mine")
    write_adapter(tmp_path / "x", CONFIG | {"r": 3}, {"a": torch.zeros(1)})
    config, tensors = read_adapter(tmp_path / "x")
    assert config["r"] == 3
    assert list(tensors) == ["a"]
    assert (tmp_path / "x" / "README.md").read_text() == "mine"
    assert len(list((tmp_path / "x").iterdir())) == 3


def test_reading_does_not_depend_on_the_file_staying(tmp_path):
    write_adapter(tmp_path, CONFIG, TENSORS)
    _, tensors = read_adapter(tmp_path)
    with (tmp_path / "adapter_model.safetensors").open("r+b") as stream:
        stream.write(b"\0" * 200)
    assert torch.equal(tensors["b"], TENSORS["b"])


def test_a_full_disk_leaves_the_old_adapter(tmp_path, monkeypatch):
    write_adapter(tmp_path / "x", CONFIG, TENSORS)
    before = adapter_digest(tmp_path / "x")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        write_adapter(tmp_path / "x", CONFIG | {"r": 9}, TENSORS)
    monkeypatch.undo()
    assert adapter_digest(tmp_path / "x") == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_digest_stands_for_both_files(tmp_path):
    write_adapter(tmp_path / "x", CONFIG, TENSORS)
    digest = adapter_digest(tmp_path / "x")
    read_adapter(tmp_path / "x", digest=digest)
    write_adapter(tmp_path / "x", CONFIG | {"r": 3}, TENSORS)
    with pytest.raises(CorruptFileError, match="not the one that was recorded"):
        read_adapter(tmp_path / "x", digest=digest)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such adapter folder"):
        read_adapter(tmp_path / "none")


def test_a_run_folder_is_pointed_to_its_adapter(tmp_path):
    write_adapter(tmp_path / "adapter", CONFIG, TENSORS)
    with pytest.raises(InputError, match=r"do:\s+give .*adapter"):
        read_adapter(tmp_path)


def test_the_base_is_noted_beside_and_only_where_it_is_known(tmp_path):
    write_adapter(tmp_path / "x", CONFIG, TENSORS, base_digest="abc")
    before = adapter_digest(tmp_path / "x")
    assert read_base_digest(tmp_path / "x") == "abc"
    assert read_adapter(tmp_path / "x")[0] == CONFIG
    write_adapter(tmp_path / "x", CONFIG, TENSORS)
    assert read_base_digest(tmp_path / "x") is None
    # The note is about the base: the adapter is the same.
    assert adapter_digest(tmp_path / "x") == before


def test_an_old_note_does_not_stay_in_a_folder_with_other_files(tmp_path):
    write_adapter(tmp_path, CONFIG, TENSORS, base_digest="abc")
    (tmp_path / "README.md").write_text("mine")
    write_adapter(tmp_path, CONFIG, TENSORS, base_digest="def")
    assert read_base_digest(tmp_path) == "def"
    write_adapter(tmp_path, CONFIG, TENSORS)
    assert read_base_digest(tmp_path) is None
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_large_sum_is_no_mistake_and_one_bad_number_is(tmp_path, value):
    tensors = {"big": torch.full((8,), 3e38), "small": torch.ones(3)}
    write_adapter(tmp_path / "x", CONFIG, tensors)
    assert torch.equal(read_adapter(tmp_path / "x")[1]["big"], tensors["big"])
    tensors["small"][1] = value
    with pytest.raises(AdapterError, match="small"):
        write_adapter(tmp_path / "y", CONFIG, tensors)
