"""A safetensors file read into memory of its own: as the library reads it, and checked."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ince.formats.reader import read_tensors

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(4).bfloat16(),
    "half": torch.randn(2, 2).half(),
    "wide": torch.randn(7).double(),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(2.5),
    "eight": torch.ones(3).to(torch.float8_e4m3fn),
    "whole": torch.arange(6).view(2, 3),
}


def test_as_the_library_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    wanted, got = load_file(path), read_tensors(path)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(
            got[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)
        )


def test_tensors_share_no_memory_and_outlive_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    tensors = read_tensors(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    tensors["a"].zero_()
    assert torch.equal(tensors["b"], torch.ones(4))
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 2


@pytest.mark.parametrize("change", ["cut", "longer", "header", "overlap"])
def test_a_garbled_file(tmp_path, change):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if change == "cut":
        data = data[:-1]
    elif change == "longer":
        data += b"\0"
    elif change == "header":
        data = data[:8] + b"[" + data[9:]
    else:
        header = json.loads(data[8 : 8 + length])
        header["b"]["data_offsets"] = header["a"]["data_offsets"]
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    path.write_bytes(data)
    with pytest.raises(SafetensorError):
        read_tensors(path)
