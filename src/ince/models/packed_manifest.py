"""A folder of safetensors that is written file by file, and what says that each is whole.

The manifest is written after each file, and names its size, its times and its SHA-256. A file is
believed when size and times are as written; after a copy or a touch, when its digest is.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ince.errors import DiskFullError, InceError
from ince.files import read_json, sha256_bytes, sha256_file, write_json
from ince.formats.tensor_bytes import DTYPES, read_tensor_header
from ince.models.packed_shards import Shard
from ince.units import format_bytes

__all__ = ["Facts", "PackedFolder", "key_of"]

MANIFEST = "manifest.json"
_FORMAT = "ince-packed/1"

Facts = Mapping[str, object]
"""What the content of a folder follows from; JSON-ready."""


def key_of(facts: Facts) -> str:
    """A short name for facts, for a folder."""
    return sha256_bytes(repr(sorted(facts.items())).encode())[:32]


class PackedFolder:
    """The files of a model, some of which may be there.

    Args:
        folder: need not exist.
        facts: that its content must follow from; with others, nothing of it counts.
        shards: the files that make it whole.
        is_hashed: keep digests, so that a file with other times than it had can be believed.
    """

    def __init__(
        self, folder: Path, facts: Facts, shards: Sequence[Shard], *, is_hashed: bool = True
    ) -> None:
        self._is_hashed = is_hashed
        self.folder = folder
        self._facts = facts
        self._shards = shards
        self.finished: dict[int, dict[str, object]] = {}
        """Number of a file → its entry in the manifest."""
        for number, entry in self._listed().items():
            checked = self._checked(number, entry)
            if checked is not None:
                self.finished[number] = checked

    def path_of(self, number: int) -> Path:
        """Of a file."""
        return self.folder / f"{number:05d}.safetensors"

    def tensors(self, number: int) -> dict[str, Tensor]:
        """The tensors of a file, as views of its map."""
        with safe_open(self.path_of(number), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def begin(self, num_bytes: int) -> None:
        """Make the folder, and remove from it what is not finished.

        Args:
            num_bytes: that must be free on the disk.

        Raises:
            DiskFullError: they are not.
            OSError: the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {self.path_of(number).name for number in self.finished}
        for path in self.folder.iterdir():
            if path.name not in kept and path.name != MANIFEST:
                path.unlink()
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            raise DiskFullError(
                "too little space on the device",
                where=self.folder,
                got=f"{format_bytes(free)} free",
                expected=format_bytes(num_bytes),
                do="free some space, or choose a folder on another disk",
            )

    def add(self, number: int) -> None:
        """Note that a file was written.

        Raises:
            InceError: the manifest cannot be written.
        """
        path = self.path_of(number)
        digest = sha256_file(path) if self._is_hashed else None
        self.finished[number] = {**_state(path), "sha256": digest}
        self._write()

    def settle(self, folder: Path, facts: Facts) -> None:
        """Move the folder to the place of other facts, which say the same more truly.

        What another process put there in the meantime is as good; ours is removed then.
        """
        whole = PackedFolder(folder, facts, self._shards)
        if len(whole.finished) == len(self._shards):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self._facts = facts
        self._write()
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.replace(folder)
        self.folder = folder

    def _write(self) -> None:
        files = {str(number): entry for number, entry in sorted(self.finished.items())}
        write_json(
            self.folder / MANIFEST, {"format": _FORMAT, "facts": dict(self._facts), "files": files}
        )

    def _listed(self) -> dict[int, dict[str, Any]]:
        with contextlib.suppress(
            InceError, OSError, KeyError, ValueError, AttributeError, TypeError
        ):
            manifest = read_json(self.folder / MANIFEST)
            if manifest["format"] == _FORMAT and manifest["facts"] == dict(self._facts):
                files = cast("dict[str, dict[str, Any]]", manifest["files"])
                return {int(number): dict(entry) for number, entry in files.items()}
        return {}

    def _checked(self, number: int, entry: dict[str, Any]) -> dict[str, object] | None:
        """The entry of a file that is as it was written, with its present times; else None."""
        if not 0 <= number < len(self._shards):
            return None
        path = self.path_of(number)
        try:
            state = _state(path)
            if state["size"] != entry["size"]:
                return None
            touched = state != {key: entry[key] for key in state}
            if touched and not (self._is_hashed and sha256_file(path) == entry["sha256"]):
                return None
            if not self._is_as_planned(number):
                return None
        except (InceError, OSError, KeyError, TypeError):
            return None
        return {**state, "sha256": entry["sha256"]}

    def _is_as_planned(self, number: int) -> bool:
        path = self.path_of(number)
        stored = {
            name: (entry.shape, DTYPES.get(entry.dtype))
            for name, entry in read_tensor_header(path).items()
        }
        with contextlib.suppress(SafetensorError):
            with safe_open(path, framework="pt"):
                pass
            planned = {each.name: (each.shape, each.dtype) for each in self._shards[number].plan}
            return stored == cast("dict[str, tuple[tuple[int, ...], torch.dtype | None]]", planned)
        return False


def _state(path: Path) -> dict[str, object]:
    state = path.stat()
    # A time of change can be set by anyone; that of the file's entry cannot.
    return {
        "size": state.st_size,
        "changed_ns": state.st_mtime_ns,
        "entry_changed_ns": state.st_ctime_ns,
    }
