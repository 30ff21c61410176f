"""Checkpoints: everything that resuming needs, each written whole and checked by digest.

    checkpoints/step-000050/
      adapter.safetensors      trained parameters by name, float32
      optimizer.safetensors    their moments by name
      state.json               step, counters, the recipe's digest
      manifest.json            SHA-256 of the three

Random numbers, data order and learning rate are functions of seed and step, so no
generator state has to be kept. A folder whose digests do not hold is passed over for the
one before it, with a line that says so.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ince.errors import CorruptFileError, InceError
from ince.files import read_json, replace_folder, sha256_file, write_json

__all__ = ["Checkpoint", "TrainState", "latest_checkpoint", "remove_old", "save_checkpoint"]

_FOLDER = re.compile(r"step-(\d{6,})")
_FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class TrainState:
    """Counters of a run after `step` optimizer steps."""

    recipe_digest: str
    step: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    folder: Path
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainState


def save_checkpoint(
    run_dir: Path,
    *,
    adapter: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: TrainState,
) -> Path:
    """Write ``checkpoints/step-NNNNNN`` whole; returns its folder.

    Raises:
        DiskFullError: no space; earlier checkpoints are as they were.
    """
    from safetensors.torch import save_file

    folder = run_dir / "checkpoints" / f"step-{state.step:06d}"
    with replace_folder(folder) as temporary:
        save_file(dict(adapter), temporary / _FILES[0])
        save_file(dict(optimizer), temporary / _FILES[1])
        write_json(temporary / _FILES[2], asdict(state))
        write_json(
            temporary / "manifest.json", {name: sha256_file(temporary / name) for name in _FILES}
        )
    return folder


def _folders(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    root = run_dir / "checkpoints"
    found = [p for p in root.glob("step-*") if p.is_dir() and _FOLDER.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def _read(folder: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        manifest = read_json(folder / "manifest.json")
        for name in _FILES:
            path = folder / name
            digest = sha256_file(path) if path.is_file() else "no such file"
            if digest != manifest.get(name):
                raise CorruptFileError(
                    "a checkpoint file is not what was written",
                    where=path,
                    got=digest,
                    expected=manifest.get(name),
                )
        content = read_json(folder / "state.json")
        return Checkpoint(
            folder,
            load_file(folder / _FILES[0]),
            load_file(folder / _FILES[1]),
            TrainState(**content),  # pyright: ignore[reportArgumentType]
        )
    except (OSError, SafetensorError, TypeError) as error:
        raise CorruptFileError("not a checkpoint", where=folder, got=str(error)) from error


def latest_checkpoint(run_dir: Path, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None when there is none at all.

    Args:
        run_dir: of the run.
        warn: called with a line for each checkpoint that had to be passed over.

    Raises:
        CorruptFileError: there are checkpoints, and none of them is whole.
    """
    folders = _folders(run_dir)
    for folder in folders:
        try:
            return _read(folder)
        except InceError as error:
            where = f" ({error.where})" if error.where else ""
            warn(f"{folder.name} is damaged and is passed over: {error.what}{where}")
    if folders:
        raise CorruptFileError(
            "no checkpoint of this run is whole",
            where=run_dir / "checkpoints",
            do="start again with --fresh, or restore the folder from a copy",
        )
    return None


def remove_old(run_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in _folders(run_dir)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
