"""The tensors of a GGUF file under the names of a transformers model, read one at a time.

Quantized weights are expanded in float32 and rounded once to the dtype that was asked for,
so that what is read equals the converted copy of the same file (`ince.models.gguf`) without
such a copy having to exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ince.formats.gguf import GGUFFile
from ince.models.gguf_plan import TensorPlan
from ince.models.source import Entry

__all__ = ["GGUFSource"]


class GGUFSource:
    """A GGUF file as a `ince.models.source.TensorSource`.

    Args:
        file: the open file.
        folder: holds the config and the tokenizer that were made of its metadata.
        plan: of `plan_tensors`.
        dtype: of every float tensor that is read.
    """

    def __init__(
        self,
        file: GGUFFile,
        folder: Path,
        plan: Mapping[str, TensorPlan],
        *,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._file, self._folder, self._plan, self._dtype = file, folder, plan, dtype
        self._entries: dict[str, Entry] = {}
        for name, tensor in plan.items():
            stored = [file.entries[source] for source in tensor.sources]
            self._entries[name] = Entry(
                shape=tensor.shape,
                dtype="+".join(dict.fromkeys(entry.type.name for entry in stored)),
                num_bytes=sum(entry.num_bytes for entry in stored),
                where=file.path,
            )

    @property
    def folder(self) -> Path:
        """Of config and tokenizer."""
        return self._folder

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor of the model that is not tied to another."""
        return self._entries

    def order(self) -> Sequence[str]:
        """By the place of the first byte in the file."""
        entries, plan = self._file.entries, self._plan
        return sorted(plan, key=lambda name: min(entries[s].start for s in plan[name].sources))

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, with its own memory.

        Raises:
            CorruptFileError: the file changed since it was opened.
        """
        return self._plan[name].read(self._file, self._dtype)

    def runs(self, name: str, max_elements: int) -> Iterator[Tensor]:
        """The numbers of a tensor in row-major order, as flat tensors of `max_elements`.

        The last may be shorter. A tensor whose numbers the file has in another order is
        read whole.
        """
        tensor = self._plan[name]
        if not tensor.is_plain:
            yield from self.read(name).view(-1).split(max_elements)
            return
        source = tensor.sources[0]
        total = tensor.num_elements
        for start in range(0, total, max_elements):
            stop = min(start + max_elements, total)
            yield self._file.elements(source, start, stop, self._dtype)
