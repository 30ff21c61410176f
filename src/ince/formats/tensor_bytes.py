"""Where each tensor of a safetensors file lies, and its bytes into memory of one's own.

The library hands out views of a mapped file. Pages of a map that were read count as memory of
the process until the system takes them back, so a checkpoint read through a map looks, and is
limited, as if it were held whole. Here the bytes are read with ``readinto``: what is held is
what the caller holds.

`ince.formats.checkpoint` opens every file with the library first, which refuses damaged headers.
What is used of a header here is checked again, since a file may change in between.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ince.errors import CorruptFileError, ModelReferenceError

__all__ = ["DTYPES", "StoredTensor", "read_into", "read_tensor_header", "torch_dtype"]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of types in safetensors files, as torch has them."""

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file."""

    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes, from the start of the file."""
    num_bytes: int


def torch_dtype(stored: str, *, name: str, where: Path) -> torch.dtype:
    """The torch type of a stored one.

    Raises:
        ModelReferenceError: torch has none, or we do not read it.
    """
    dtype = DTYPES.get(stored)
    if dtype is None:
        raise ModelReferenceError(
            f"tensor {name!r} is stored in a type that is not read",
            where=where,
            got=stored,
            expected=", ".join(DTYPES),
        )
    return dtype


def read_tensor_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        CorruptFileError: the header cannot be read, or names bytes that are not in the file.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, f"a header of {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(header, dict):
        raise _damaged(path, "a header that is not an object")
    found = {
        name: _entry(path, name, entry, 8 + length, size)
        for name, entry in cast("dict[str, Any]", header).items()
        if name != "__metadata__"
    }
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def _entry(path: Path, name: str, entry: Any, data: int, size: int) -> StoredTensor:
    try:
        stored, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path, f"{name}: {type(error).__name__}: {error}") from error
    dtype = DTYPES.get(stored)
    fits = 0 <= start <= stop <= size - data and all(length >= 0 for length in shape)
    if not fits or (dtype is not None and math.prod(shape) * dtype.itemsize != stop - start):
        raise _damaged(path, f"{name}: {stored} {list(shape)} at bytes {start} to {stop}")
    return StoredTensor(stored, shape, data + start, stop - start)


def read_into(stream: IO[bytes], start: int, tensor: Tensor, path: Path) -> None:
    """Fill `tensor`, contiguous and on the CPU, with the bytes of an unbuffered file at `start`.

    Raises:
        CorruptFileError: the file ended.
    """
    if tensor.numel() == 0:
        return
    buffer = tensor.view(-1).view(torch.uint8).numpy().data
    stream.seek(start)
    while buffer:
        count = cast("int | None", stream.readinto(buffer))  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise _damaged(path, f"the file ended {len(buffer)} bytes early")
        buffer = buffer[count:]


def _damaged(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(
        "not readable as safetensors",
        where=path,
        got=what,
        do="the file is cut off or is something else; download or write it again",
    )
