"""Read a GGUF file tensor by tensor, each straight into the memory it stays in.

The library `gguf` maps the file, and expands a tensor as a whole in several copies. Here a
tensor's bytes are read piece by piece into a small buffer, expanded, and rounded into the
result: what is held is the result and a few megabytes, whatever the size of the file. The
file is read and not mapped, since mapped pages count as memory of the process.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.gguf.blocks import EXPANDED_TYPES, expand_blocks
from ince.formats.gguf.cursor import Value
from ince.formats.gguf.header import GGUFEntry, read_header
from ince.formats.gguf.types import TensorType

__all__ = ["GGUFEntry", "GGUFFile"]

_PIECE_BYTES = 4 << 20


class GGUFFile:
    """The tensors of one file: names and shapes now, weights on demand.

    Args:
        path: a GGUF file of version 2 or 3, little-endian.

    Attributes:
        path: the file.
        version: of the format.
        metadata: by key; arrays are read-only.
        entries: tensors by name, in the order of the header.

    Raises:
        ModelReferenceError: not a GGUF file, or one of a kind that is not read.
        CorruptFileError: the file is cut off, or its header contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self._opened() as stream:
            header = read_header(stream, self.path)
            self._state = _state(stream)
        self.version = header.version
        self.metadata: Mapping[str, Value] = header.metadata
        self.entries: Mapping[str, GGUFEntry] = header.entries

    def check_type(self, name: str) -> None:
        """Refuse the tensor `name` when its type is not read here.

        Raises:
            ModelReferenceError: naming the type.
        """
        stored = self.entries[name].type
        if stored.dtype is None and stored.name not in EXPANDED_TYPES:
            plain = ("F32", "F16", "BF16")
            raise ModelReferenceError(
                f"tensor {name!r} is stored as {stored.name}, which is not read",
                where=self.path,
                got=stored.name,
                expected=", ".join((*plain, *EXPANDED_TYPES)),
                do="get the model in another quantization, such as Q8_0 or Q4_K_M",
            )

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name`, in memory of its own.

        Args:
            name: as the file has it.
            dtype: a float type; None keeps plain numbers as they are stored, and
                expands quantized ones to float32. Expansion is in float32, rounded once.

        Raises:
            ModelReferenceError: stored in a type that is not expanded here; it is named.
            CorruptFileError: the file changed since it was opened.
        """
        shape = self.entries[name].shape
        return self.elements(name, 0, math.prod(shape), dtype).view(shape)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Rows `start` to `stop` of the outermost dimension; else as `tensor`.

        Raises:
            IndexError: the tensor has no such rows.
        """
        shape = self.entries[name].shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"{name} {list(shape)} has no rows {start} to {stop}")
        row = math.prod(shape[1:])
        flat = self.elements(name, start * row, stop * row, dtype)
        return flat.view(stop - start, *shape[1:])

    def elements(
        self, name: str, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Weights `start` to `stop` in row-major order, flat; else as `tensor`.

        Raises:
            IndexError: the tensor has no such weights.
        """
        self.check_type(name)
        entry = self.entries[name]
        if not 0 <= start <= stop <= math.prod(entry.shape):
            raise IndexError(f"{name} {list(entry.shape)} has no weights {start} to {stop}")
        kept = dtype or entry.type.dtype or torch.float32
        width = entry.type.block_weights
        first, last = start // width, -(-stop // width)
        out = torch.empty((last - first) * width, dtype=kept)
        self._fill(name, first, out)
        return out[start - first * width : stop - first * width]

    def _fill(self, name: str, first_block: int, out: Tensor) -> None:
        """Fill `out`, flat, with whole blocks of the tensor `name` from `first_block` on."""
        entry = self.entries[name]
        stored = entry.type
        with self._opened() as stream:
            if _state(stream) != self._state:
                raise self._changed()
            stream.seek(entry.start + first_block * stored.block_bytes)
            if stored.dtype == out.dtype:
                self._read_exactly(stream, out.view(torch.uint8))
                return
            num_blocks = len(out) // stored.block_weights
            piece = _PIECE_BYTES // stored.block_bytes
            buffer = torch.empty(min(piece, num_blocks), stored.block_bytes, dtype=torch.uint8)
            for start in range(0, num_blocks, piece):
                raw = buffer[: num_blocks - start]
                self._read_exactly(stream, raw.view(-1))
                width = stored.block_weights
                _expand(raw, stored, out[start * width : (start + len(raw)) * width])

    def _opened(self) -> BinaryIO:
        try:
            return self.path.open("rb", buffering=0)
        except OSError as error:
            raise ModelReferenceError(
                f"the GGUF file cannot be read: {error.strerror}", where=self.path
            ) from error

    def _read_exactly(self, stream: BinaryIO, out: Tensor) -> None:
        """Fill `out`, flat uint8, with the next bytes of the file."""
        view = out.numpy().data
        at = 0
        while at < len(view):
            count = stream.readinto(view[at:])  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise self._changed()
            at += count

    def _changed(self) -> CorruptFileError:
        return CorruptFileError(
            "the file changed while it was read",
            where=self.path,
            do="let whatever writes the file finish, then try again",
        )


def _state(stream: BinaryIO) -> tuple[int, int, int]:
    state = os.fstat(stream.fileno())
    return state.st_ino, state.st_size, state.st_mtime_ns


def _expand(raw_NB: Tensor, stored: TensorType, out: Tensor) -> None:
    if stored.dtype is None:
        expand_blocks(raw_NB, stored.name, out)
    else:
        out.copy_(raw_NB.view(stored.dtype).view(-1))
