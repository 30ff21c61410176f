"""Read a model's weights from a folder, one tensor at a time.

A checkpoint is ``model.safetensors``, or several shards that
``model.safetensors.index.json`` lists. Headers are read and compared before any
weight is, so that a missing shard or an index that disagrees with its shards is
found in milliseconds and not after minutes of loading.

Only safetensors is read. A pickle (``.bin``, ``.pt``) can run code when it is
opened, and is refused with advice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ince.errors import CorruptFileError, ModelReferenceError
from ince.files import read_json

__all__ = ["Checkpoint", "TensorEntry", "iter_tensors"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies, and its shape, as its shard's header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """The tensors of one folder: names and shapes now, data on demand.

    Args:
        folder: holds ``model.safetensors`` or an index with its shards.

    Raises:
        ModelReferenceError: no safetensors weights in the folder.
        CorruptFileError: a shard is missing or cut off, or disagrees with the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.files, listed = _shards(self.folder)
        self.entries: dict[str, TensorEntry] = {}
        for file in self.files:
            for name, entry in _read_header(file).items():
                if name in self.entries:
                    raise CorruptFileError(
                        f"tensor {name!r} is stored twice",
                        where=file,
                        got=f"also in {self.entries[name].file.name}",
                        do="download the model again",
                    )
                self.entries[name] = entry
        if listed is not None:
            _compare_with_index(self.folder / INDEX_FILE, listed, self.entries)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, as a copy that no longer depends on the file."""
        entry = self.entries[name]
        with _opened(entry.file) as shard:
            return shard.get_tensor(name).clone()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every (name, tensor) once, shard by shard in the order of the file.

        The tensor is a view of the mapped file: nothing is in memory until it is read.
        What is kept must be copied, since a view changes when somebody writes into the
        file, and holds the whole mapping.
        """
        for file in self.files:
            with _opened(file) as shard:
                for name in shard.offset_keys():
                    yield name, shard.get_tensor(name)


def iter_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of the checkpoint in `folder`; see `Checkpoint`."""
    return iter(Checkpoint(folder))


def _shards(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of `folder`, and tensor name → file name where an index says so."""
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if not index.exists() and single.exists():
        return [single], None
    if index.exists():
        listed = _read_index(index)
        names = sorted(set(listed.values()))
        missing = [name for name in names if not _is_file(folder / name)]
        if missing:
            raise CorruptFileError(
                f"{len(missing)} of {len(names)} weight files are missing",
                where=folder,
                got=", ".join(missing),
                do="download the model again; the index names these files",
            )
        return [folder / name for name in names], listed
    raise _no_weights(folder)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _no_weights(folder: Path) -> ModelReferenceError:
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return ModelReferenceError(
            "the folder holds weights as pickle files only, which can run code when opened",
            where=folder,
            got=", ".join(pickles),
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            do="get the safetensors form of the model, or convert it where you trust the file: "
            "load it with transformers and call save_pretrained",
        )
    return ModelReferenceError(
        "the folder holds no model weights",
        where=folder,
        got=", ".join(sorted(p.name for p in folder.glob("*"))[:12]) or "an empty folder",
        expected=f"{SINGLE_FILE} or {INDEX_FILE}",
    )


def _read_index(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFileError(
            "the index of the weights has no weight_map", where=index, do="download it again"
        )
    for name, file in weight_map.items():
        # A path here could reach any file of the machine.
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise CorruptFileError(
                f"the index places {name!r} outside the model's folder",
                where=index,
                got=file,
                expected="a plain file name",
            )
        if Path(file).suffix != ".safetensors":
            raise ModelReferenceError(
                "the index names weights that are not safetensors",
                where=index,
                got=file,
                do="get the safetensors form of the model",
            )
    return weight_map


def _opened(file: Path) -> Any:
    """A safetensors reader on `file`, errors as ours. Any: the library has no types."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(
            "not readable as safetensors",
            where=file,
            got=str(error),
            do="the file is cut off or is something else; download or write it again",
        ) from error


def _read_header(file: Path) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    with _opened(file) as shard:
        for name in shard.keys():  # noqa: SIM118, not a dict
            part = shard.get_slice(name)
            entries[name] = TensorEntry(file, tuple(part.get_shape()), part.get_dtype())
    return entries


def _compare_with_index(
    index: Path, listed: dict[str, str], entries: dict[str, TensorEntry]
) -> None:
    absent = [name for name in listed if name not in entries]
    unlisted = [name for name in entries if name not in listed]
    elsewhere = [n for n, file in listed.items() if n in entries and entries[n].file.name != file]
    for names, what in (
        (absent, "listed in the index but in no weight file"),
        (unlisted, "in a weight file but not in the index"),
        (elsewhere, "in another weight file than the index says"),
    ):
        if names:
            raise CorruptFileError(
                f"tensors {what}: {len(names)}",
                where=index,
                got=", ".join(sorted(names)[:5]),
                do="the files are of different versions; download the model again",
            )
