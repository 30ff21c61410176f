"""The header of a GGUF file: what it says of itself, and where each tensor lies.

    4 bytes     "GGUF"
    u32         version, 2 or 3
    u64 u64     number of tensors, number of metadata keys
    metadata    key (string), type, value
    tensors     name (string), number of dimensions, dimensions, type, offset
    padding     to the alignment, 32 bytes unless general.alignment says otherwise
    data        each tensor at its offset from here

All is checked before any of it is used: a header that promises more than the file holds,
tensors that lie outside of it or over each other, sizes that no machine has. Dimensions are
turned round on the way: GGUF counts from the innermost, torch from the outermost.

Source: the specification of GGUF, github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.gguf.cursor import Cursor, Value
from ince.formats.gguf.types import REMOVED_TYPES, TENSOR_TYPES, TensorType

__all__ = ["GGUFEntry", "Header", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4  # of a tensor of ggml
_MIN_KEY_BYTES = 8 + 4 + 1  # length of the key, type, the smallest value
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # length of the name, dimensions, type, offset
# More than any model has; what Python keeps of an entry is larger than the entry.
_MAX_ENTRIES = 1 << 17
_AGAIN = "the file is damaged or was written wrongly; get it again"


@dataclass(frozen=True, slots=True)
class GGUFEntry:
    """One tensor, as the header describes it.

    Attributes:
        shape: in torch's order, the outermost dimension first.
        type: how its weights are stored.
        start: of its first byte, from the start of the file.
        num_bytes: in the file.
    """

    shape: tuple[int, ...]
    type: TensorType
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """All of a file but its weights.

    Attributes:
        version: of the format.
        metadata: by key; arrays are read-only.
        entries: tensors by name, in the order of the header.
        num_bytes: of the file.
    """

    version: int
    metadata: Mapping[str, Value]
    entries: Mapping[str, GGUFEntry]
    num_bytes: int


def read_header(stream: BinaryIO, path: Path) -> Header:
    """Read and check the header of an open GGUF file.

    Args:
        stream: opened for reading bytes, at its start.
        path: for messages.

    Raises:
        ModelReferenceError: not a GGUF file, or one of a kind that is not read.
        CorruptFileError: the file is cut off, or its header contradicts itself.
    """
    state = os.fstat(stream.fileno())
    if not stat.S_ISREG(state.st_mode):
        raise ModelReferenceError("not a file", where=path, expected="a GGUF file")
    num_bytes = state.st_size
    cursor = Cursor(stream, path, num_bytes)
    version = _version(cursor, path)
    num_tensors = cursor.u64("the number of tensors")
    num_keys = cursor.u64("the number of metadata keys")
    for count, bytes_each, what in (
        (num_tensors, _MIN_TENSOR_BYTES, "the list of tensors"),
        (num_keys, _MIN_KEY_BYTES, "the metadata"),
    ):
        cursor.check(count, bytes_each, what)
        if count > _MAX_ENTRIES:
            raise CorruptFileError(
                f"{what} is longer than that of any model",
                where=path,
                got=count,
                expected=f"at most {_MAX_ENTRIES}",
                do=_AGAIN,
            )
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = cursor.text("a key of the metadata")
        if key in metadata:
            raise CorruptFileError(
                f"a key stands twice in the header: {key}", where=path, do=_AGAIN
            )
        metadata[key] = cursor.value(key)
    alignment = _alignment(metadata, path)
    infos: dict[str, tuple[tuple[int, ...], TensorType, int]] = {}
    for _ in range(num_tensors):
        name = cursor.text("the name of a tensor")
        if name in infos:
            raise CorruptFileError(f"tensor {name!r} is listed twice", where=path, do=_AGAIN)
        infos[name] = _tensor(cursor, name, path)
    data = -(-cursor.position // alignment) * alignment
    entries = {
        name: GGUFEntry(shape, type_, data + offset, _num_bytes(name, shape, type_, path))
        for name, (shape, type_, offset) in infos.items()
    }
    for name, (_, _, offset) in infos.items():
        if offset % alignment:
            raise CorruptFileError(
                f"tensor {name!r} does not start at a multiple of {alignment} bytes",
                where=path,
                got=offset,
                do=_AGAIN,
            )
    _check_places(entries, num_bytes, path)
    return Header(version, metadata, entries, num_bytes)


def _version(cursor: Cursor, path: Path) -> int:
    if cursor.left < len(_MAGIC) or cursor.take(len(_MAGIC), "its first bytes") != _MAGIC:
        raise ModelReferenceError(
            "not a GGUF file", where=path, expected="a file that starts with the bytes GGUF"
        )
    version = cursor.u32("the version")
    if version in _VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in _VERSIONS:
        raise ModelReferenceError(
            "this GGUF file is for big-endian machines",
            where=path,
            do="get the usual, little-endian file, or turn it round with gguf_convert_endian.py "
            "of llama.cpp",
        )
    raise ModelReferenceError(
        "this version of GGUF is not read",
        where=path,
        got=version,
        expected=" or ".join(str(v) for v in _VERSIONS),
        do="get a newer file of the model" if version < min(_VERSIONS) else None,
    )


def _alignment(metadata: Mapping[str, Value], path: Path) -> int:
    value = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    # A power of two of a sane size: rounding up to 2^63 would leave every file behind.
    if type(value) is not int or value < 1 or value & (value - 1) or value > 1 << 20:
        raise CorruptFileError(
            f"{_ALIGNMENT_KEY} is not an alignment",
            where=path,
            got=value,
            expected="a power of two, such as 32",
            do=_AGAIN,
        )
    return value


def _tensor(cursor: Cursor, name: str, path: Path) -> tuple[tuple[int, ...], TensorType, int]:
    """Shape, type and offset of the tensor whose name was just read."""
    what = f"the entry of tensor {name!r}"
    num_dimensions = cursor.u32(what)
    if num_dimensions > _MAX_DIMENSIONS:
        raise CorruptFileError(
            f"tensor {name!r} has too many dimensions",
            where=path,
            got=num_dimensions,
            expected=f"at most {_MAX_DIMENSIONS}",
            do=_AGAIN,
        )
    shape = tuple(cursor.u64(what) for _ in range(num_dimensions))[::-1]
    number = cursor.u32(what)
    offset = cursor.u64(what)
    type_ = TENSOR_TYPES.get(number)
    if type_ is None:
        raise ModelReferenceError(
            f"tensor {name!r} is stored in a type that is not known",
            where=path,
            got=f"{REMOVED_TYPES[number]}, which llama.cpp reads no longer"
            if number in REMOVED_TYPES
            else f"type {number}",
            expected=", ".join(t.name for t in TENSOR_TYPES.values()),
            do="get the model in another quantization, such as Q8_0 or Q4_K_M",
        )
    return shape, type_, offset


def _num_bytes(name: str, shape: tuple[int, ...], type_: TensorType, path: Path) -> int:
    """What a tensor takes in the file; the file's size is compared later."""
    row = shape[-1] if shape else 1
    if 0 in shape or row % type_.block_weights:
        raise CorruptFileError(
            f"tensor {name!r} has a shape that {type_.name} cannot have",
            where=path,
            got=list(shape),
            expected=f"no dimension of 0, and rows of a multiple of {type_.block_weights} weights",
            do=_AGAIN,
        )
    return math.prod(shape) // type_.block_weights * type_.block_bytes


def _check_places(entries: Mapping[str, GGUFEntry], num_bytes: int, path: Path) -> None:
    """Every tensor is inside the file, and no two share a byte."""
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < end:
            raise CorruptFileError(
                f"tensors {before!r} and {name!r} lie over each other",
                where=path,
                got=f"bytes up to {end}, and from {entry.start}",
                do=_AGAIN,
            )
        end, before = entry.start + entry.num_bytes, name
        if end > num_bytes:
            raise CorruptFileError(
                f"tensor {name!r} lies outside the file",
                where=path,
                got=f"{list(entry.shape)} {entry.type.name}, {entry.num_bytes} bytes "
                f"from {entry.start} on",
                expected=f"a file of at least {end} bytes; it has {num_bytes}",
                do="the file is cut off or damaged; get it again",
            )
