"""Tensors of a checkpoint, one at a time: written as they are computed, read when asked for.

Optimizer state may be larger than memory: where it lies in a file (`ince.optim.pages`), a
checkpoint must not gather it. So a group of tensors is a list of names, shapes and types with a
function for each, and what is read back is a mapping that opens its file for every tensor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ince.formats.writer import PlannedTensor, write_safetensors
from ince.optim import StateTensor

__all__ = ["StoredTensors", "write_group"]


def write_group(path: Path, group: Mapping[str, Tensor] | Sequence[StateTensor]) -> None:
    """Write a group of tensors, holding one of those that are to be computed.

    Args:
        path: in a folder that is written whole.
        group: tensors by name, or how each is had.
    """
    found: list[tuple[PlannedTensor, Callable[[], Tensor]]] = []
    if isinstance(group, Mapping):
        for name, tensor in group.items():
            planned = PlannedTensor(name, tuple(tensor.shape), tensor.dtype)
            found.append((planned, lambda tensor=tensor: tensor))
    else:
        found += [(PlannedTensor(t.name, t.shape, t.dtype), t.compute) for t in group]
    # Wide types first: each tensor then begins at a multiple of its own width.
    found.sort(key=lambda one: -one[0].dtype.itemsize)
    write_safetensors(path, [planned for planned, _ in found], (get() for _, get in found))


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Read what there is.

        Raises:
            SafetensorError: it is no such file.
        """
        self._path = path
        with safe_open(path, framework="pt") as file:
            self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, framework="pt") as file:
            # Out of the map, which is then gone.
            return file.get_tensor(name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
