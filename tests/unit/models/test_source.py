"""Tensors of a folder: in the order of the disk, with memory of their own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ince.errors import CorruptFileError
from ince.models import source as source_module
from ince.models.source import Entry, SafetensorsSource, tensor_runs

TENSORS = {
    "b": torch.arange(1000, dtype=torch.float32).reshape(10, 100),
    "a": torch.arange(7, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
    "one": torch.tensor(5),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_entries_say_what_is_stored(folder: Path) -> None:
    source = SafetensorsSource(folder)
    file = folder / "model.safetensors"
    assert source.entries["a"] == Entry((7,), "BF16", 14, file)
    assert source.entries["b"] == Entry((10, 100), "F32", 4000, file)
    assert sorted(source.order()) == sorted(TENSORS)


@pytest.mark.parametrize("is_large", [False, True])
def test_tensors_are_read_whole_and_in_runs(
    folder: Path, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_large:
        monkeypatch.setattr(source_module, "_memory_bytes", lambda: 0)
    source = SafetensorsSource(folder)
    for name in source.order():
        read = source.read(name)
        assert read.dtype == TENSORS[name].dtype
        assert torch.equal(read, TENSORS[name])
        runs = [run.clone() for run in tensor_runs(source, name, 64)]
        assert all(run.numel() == 64 for run in runs[:-1])
        assert torch.equal(torch.cat([torch.empty(0), *runs]), TENSORS[name].flatten().float())


def test_what_was_read_does_not_change_with_the_file(folder: Path) -> None:
    read = SafetensorsSource(folder).read("b")
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    assert torch.equal(read, TENSORS["b"])


def test_source_without_runs_is_read_whole(folder: Path) -> None:
    class Whole:
        def __init__(self, folder: Path) -> None:
            self.folder = folder
            self.inner = SafetensorsSource(folder)
            self.entries = self.inner.entries
            self.order = self.inner.order
            self.read = self.inner.read

    runs = list(tensor_runs(Whole(folder), "b", 300))
    assert [run.numel() for run in runs] == [300, 300, 300, 100]


def test_file_cut_off_after_it_was_opened_is_refused(folder: Path) -> None:
    source = SafetensorsSource(folder)
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 2000)
    with pytest.raises(CorruptFileError):
        source.read("b")
    with pytest.raises(CorruptFileError):
        list(source.runs("b", 64))
