"""Bytes of safetensors files: found without the library, and never more than are there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.tensor_bytes import DTYPES, read_into, read_tensor_header, torch_dtype


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_read_as_the_library_writes_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.arange(6).reshape(2, 3).to(DTYPES[name])
    save_file({"pad": torch.zeros(1, dtype=torch.uint8), "a": tensor}, path)
    stored = read_tensor_header(path)["a"]
    assert (stored.dtype, stored.shape) == (name, (2, 3))
    read = torch.empty(stored.shape, dtype=torch_dtype(stored.dtype, name="a", where=path))
    with path.open("rb", buffering=0) as stream:
        read_into(stream, stored.start, read, path)
    assert read.view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {
        "z": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]},
    }
    assert list(read_tensor_header(write(tmp_path / "x", header, bytes(5)))) == ["z", "a"]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1 << 58], "data_offsets": [0, 1 << 60]}},
    ],
)
def test_header_that_lies_is_refused(header: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError):
        read_tensor_header(write(tmp_path / "x", header, bytes(4)))


def test_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptFileError):
        read_tensor_header(path)
    path.write_bytes(b"\1\2")
    with pytest.raises(CorruptFileError):
        read_tensor_header(path)


def test_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    with (
        path.open("rb", buffering=0) as stream,
        pytest.raises(CorruptFileError, match="2 bytes early"),
    ):
        read_into(stream, 8, torch.empty(4, dtype=torch.uint8), path)


def test_type_that_torch_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError, match="F4"):
        torch_dtype("F4", name="a", where=tmp_path)
