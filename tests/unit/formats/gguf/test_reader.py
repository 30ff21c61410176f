"""Tensors of a GGUF file are read as they were written, a whole or some rows."""

import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.gguf import GGUFFile

WEIGHTS = np.random.default_rng(0).standard_normal((6, 4, 64), dtype=np.float32)
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("f32", WEIGHTS)
    writer.add_tensor("f16", WEIGHTS.astype(np.float16))
    bits = (WEIGHTS.view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("bf16", bits.view(np.uint8), raw_dtype=Type.BF16)
    for name in QUANTIZED:
        writer.add_tensor(name, quantize(WEIGHTS, Type[name]), raw_dtype=Type[name])
    writer.add_tensor("i32", np.arange(5, dtype=np.int32))
    writer.add_tensor("vector", np.arange(7, dtype=np.float32))
    random = np.random.default_rng(0).integers(0, 256, (2, 66), dtype=np.uint8)
    writer.add_tensor("strange", random, raw_dtype=Type.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected(name: str) -> torch.Tensor:
    if name == "f32":
        return torch.from_numpy(WEIGHTS)
    if name == "f16":
        return torch.from_numpy(WEIGHTS).half()
    if name == "bf16":
        return torch.from_numpy(WEIGHTS.view(np.int32) >> 16 << 16).view(torch.float32).bfloat16()
    return torch.from_numpy(dequantize(quantize(WEIGHTS, Type[name]), Type[name]))


def test_entries(path: Path) -> None:
    file = GGUFFile(path)
    assert list(file.entries)[:3] == ["f32", "f16", "bf16"]
    entry = file.entries["Q4_1"]
    assert (entry.shape, entry.type.name, entry.num_bytes) == ((6, 4, 64), "Q4_1", 6 * 4 * 2 * 20)
    assert file.metadata["general.architecture"] == "llama"
    assert file.version == 3


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", *QUANTIZED])
def test_tensor(path: Path, name: str) -> None:
    file = GGUFFile(path)
    stored = file.tensor(name)
    assert stored.dtype == {"f16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
    assert torch.equal(stored, expected(name))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(file.tensor(name, dtype), expected(name).to(dtype))
    stored.zero_()  # its own memory
    assert torch.equal(file.tensor(name), expected(name))


@pytest.mark.parametrize("name", ["f32", "bf16", "Q4_0", "Q8_0"])
def test_rows(path: Path, name: str) -> None:
    file = GGUFFile(path)
    for start, stop in ((0, 6), (2, 5), (5, 6), (3, 3)):
        part = file.rows(name, start, stop, torch.bfloat16)
        assert torch.equal(part, expected(name)[start:stop].bfloat16())
    for start, stop in ((-1, 2), (4, 7), (3, 2)):
        with pytest.raises(IndexError):
            file.rows(name, start, stop)


def test_pieces_meet(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ince.formats.gguf.reader._PIECE_BYTES", 100)
    monkeypatch.setattr("ince.formats.gguf.blocks._PIECE_WEIGHTS", 64)
    file = GGUFFile(path)
    for name in ("f16", *QUANTIZED):
        assert torch.equal(file.tensor(name, torch.bfloat16), expected(name).bfloat16())


def test_plain_numbers(path: Path) -> None:
    file = GGUFFile(path)
    assert torch.equal(file.tensor("i32"), torch.arange(5, dtype=torch.int32))
    assert torch.equal(file.rows("vector", 2, 4), torch.tensor([2.0, 3.0]))


def test_a_type_that_is_not_read_is_named(path: Path) -> None:
    file = GGUFFile(path)
    with pytest.raises(ModelReferenceError, match="(?s)'strange' is stored as IQ2_XXS.*Q4_K"):
        file.tensor("strange")


def test_a_file_that_changes_is_noticed(path: Path) -> None:
    file = GGUFFile(path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(CorruptFileError, match="changed while it was read"):
        file.tensor("f32")
    path.unlink()
    with pytest.raises(ModelReferenceError, match="cannot be read"):
        file.tensor("f32")


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError):
        GGUFFile(tmp_path)
    with pytest.raises(ModelReferenceError):
        GGUFFile(tmp_path / "none.gguf")


def _read_in_little_memory(path: Path, spare_bytes: int, told) -> None:
    torch.set_num_threads(1)
    file = GGUFFile(path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare_bytes,) * 2)
    for name in file.entries:
        told.send(file.tensor(name, torch.bfloat16).shape)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much is used is unknown")
def test_what_is_held_is_one_tensor_and_little_more(tmp_path: Path) -> None:
    """Three tensors of 64 MiB in bfloat16, one after the other, in 64 MiB and 24 more."""
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    for name, kind, width in (("a", "Q8_0", 34), ("b", "Q4_K", 144), ("c", "F32", 4)):
        per_block = {"Q8_0": 32, "Q4_K": 256, "F32": 1}[kind]
        row = (4096 // per_block) * width
        dtype = np.float32 if kind == "F32" else np.uint8
        writer.add_tensor_info(
            name, (8192, 4096 if kind == "F32" else row), np.dtype(dtype), 8192 * row, Type[kind]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 256 * 2**20)  # zeros that take no room on the disk
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (path, (64 + 24) << 20, theirs)
    child = context.Process(target=_read_in_little_memory, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [ours.recv() for _ in range(3)] == [(8192, 4096)] * 3
