"""Where a model's tensors come from: names and shapes now, numbers on demand.

`TensorSource` is what loading asks of any file format. `SafetensorsSource` is a folder of
safetensors. Nothing is mapped: a tensor is read into memory of its own, and large ones can be
read in runs through one small buffer (`tensor_runs`), so that a weight which is packed anyway
never exists whole.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import torch
from torch import Tensor

from ince.formats.checkpoint import Checkpoint
from ince.formats.tensor_bytes import StoredTensor, read_into, read_tensor_header, torch_dtype

__all__ = ["Entry", "ReadsInRuns", "SafetensorsSource", "TensorSource", "tensor_runs"]


@dataclass(frozen=True)
class Entry:
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str
    """As the format names it: ``BF16``, ``Q4_K``, …"""
    num_bytes: int
    """As stored."""
    where: Path
    """The file."""


class TensorSource(Protocol):
    """The tensors of a model on disk, under the names that the model's class expects or under
    names that transformers knows how to convert.
    """

    @property
    def folder(self) -> Path:
        """What messages name; config and tokenizer are in it where the format keeps them apart."""
        ...

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor."""
        ...

    def order(self) -> Sequence[str]:
        """Every name once, in the order in which reading is fastest: that of the disk."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, with its own memory.

        Raises:
            CorruptFileError: the file is cut off.
        """
        ...


@runtime_checkable
class ReadsInRuns(Protocol):
    """A source that can read a tensor piece by piece."""

    def runs(self, name: str, max_elements: int) -> Iterator[Tensor]:
        """See `tensor_runs`."""
        ...


def tensor_runs(source: TensorSource, name: str, max_elements: int) -> Iterator[Tensor]:
    """The numbers of a tensor in row-major order, as flat tensors of `max_elements`, the last
    perhaps shorter. Each may be overwritten when the next is drawn.
    """
    if isinstance(source, ReadsInRuns):
        return source.runs(name, max_elements)
    return iter(source.read(name).view(-1).split(max_elements))


class SafetensorsSource:
    """A folder with ``model.safetensors``, or an index with its shards.

    Raises:
        ModelReferenceError: no safetensors weights in the folder.
        CorruptFileError: a shard is missing or cut off, or disagrees with the index.
    """

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint(folder)
        self._folder = checkpoint.folder
        self.files: list[Path] = checkpoint.files
        self._stored: dict[str, StoredTensor] = {}
        self._entries: dict[str, Entry] = {}
        for file in self.files:
            for name, stored in read_tensor_header(file).items():
                self._stored[name] = stored
                self._entries[name] = Entry(stored.shape, stored.dtype, stored.num_bytes, file)
        # Files larger than the memory would push everything else out of the system's cache.
        num_bytes = sum(stored.num_bytes for stored in self._stored.values())
        self._is_large = num_bytes > _memory_bytes() // 4
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @property
    def folder(self) -> Path:
        """Of the weights, config and tokenizer."""
        return self._folder

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor, in the order of the disk."""
        return self._entries

    def order(self) -> Sequence[str]:
        """Shard by shard, each in the order of its bytes."""
        return list(self._entries)

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, with its own memory.

        Raises:
            CorruptFileError: the file is cut off.
            ModelReferenceError: the tensor is of a type that is not read.
        """
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=self._dtype(name))
        with entry.where.open("rb", buffering=0) as stream:
            self._fill(stream, name, 0, tensor)
        return tensor

    def runs(self, name: str, max_elements: int) -> Iterator[Tensor]:
        """See `tensor_runs`. All runs of the source lie in one buffer."""
        entry, dtype = self._entries[name], self._dtype(name)
        left, at = math.prod(entry.shape), 0
        with entry.where.open("rb", buffering=0) as stream:
            while left:
                count = min(left, max_elements)
                num_bytes = count * dtype.itemsize
                if self._buffer.numel() < num_bytes:
                    self._buffer = torch.empty(num_bytes, dtype=torch.uint8)
                run = self._buffer[:num_bytes].view(dtype)
                self._fill(stream, name, at, run)
                left, at = left - count, at + num_bytes
                # While this one is worked on, the system reads on: the next run, or what lies
                # behind the tensor and is asked for next.
                _advise(stream, self._stored[name].start + at, 2 * num_bytes, "WILLNEED")
                yield run

    def _dtype(self, name: str) -> torch.dtype:
        entry = self._entries[name]
        return torch_dtype(entry.dtype, name=name, where=entry.where)

    def _fill(self, stream: IO[bytes], name: str, at: int, tensor: Tensor) -> None:
        start = self._stored[name].start + at
        read_into(stream, start, tensor, self._entries[name].where)
        if self._is_large:
            num_bytes = tensor.numel() * tensor.element_size()
            _advise(stream, start, num_bytes, "DONTNEED")


def _advise(stream: IO[bytes], start: int, num_bytes: int, advice: str) -> None:
    """Tell the system what becomes of a part of a file, where it listens."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            kind = getattr(os, f"POSIX_FADV_{advice}")
            os.posix_fadvise(stream.fileno(), start, num_bytes, kind)


def _memory_bytes() -> int:
    """Of the machine; without limit where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62
