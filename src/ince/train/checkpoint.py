"""Checkpoints: everything that resuming needs, each written whole and checked by digest.

    checkpoints/step-000050/
      adapter.safetensors      trained parameters by name, float32; of a whole model it is
                               model.safetensors
      optimizer.safetensors    their moments by name
      ema.safetensors          their moving average, where the run keeps one
      state.json               `TrainState`: step, counters, the recipe's digest
      manifest.json            SHA-256 of each of the others

Random numbers, data order and learning rate are functions of seed and step, so no
generator state has to be kept. A folder whose digests do not hold is passed over for the
one before it, with a line that says so; what a killed writer left half-written is cleared.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ince.errors import CorruptFileError, InceError
from ince.files import (
    read_json,
    remove_folder,
    remove_leftovers,
    replace_folder,
    sha256_file,
    write_json,
)
from ince.optim import StateTensor
from ince.train.state import TrainState
from ince.train.stored_tensors import StoredTensors, write_group

__all__ = ["Checkpoint", "latest_checkpoint", "read_checkpoint", "remove_old", "save_checkpoint"]

_FOLDER = re.compile(r"step-(\d{6,})")
_TENSORS = ".safetensors"
# Groups of tensors that no checkpoint is without: the weights under one of two names.
_WEIGHTS, _WHOLE = "adapter", "model"
_OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified; `tensors` by group, then by name, read when asked for."""

    folder: Path
    tensors: dict[str, Mapping[str, Tensor]]
    state: TrainState


def save_checkpoint(
    run_dir: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor] | Sequence[StateTensor]],
    state: TrainState,
) -> Path:
    """Write ``checkpoints/step-NNNNNN`` whole, and read it back; returns its folder.

    Args:
        run_dir: of the run.
        tensors: a file for each group, of tensors by name or of how each is had; `optimizer`,
            and `adapter` or `model`, at least.
        state: the rest.

    Raises:
        DiskFullError: no space; earlier checkpoints are as they were.
        CorruptFileError: what was written does not read back; earlier ones are as they were.
    """
    folder = _folder_of(run_dir, state.step)
    with replace_folder(folder) as temporary:
        for group, named in tensors.items():
            write_group(temporary / f"{group}{_TENSORS}", named)
        write_json(temporary / "state.json", asdict(state))
        written = sorted(path.name for path in temporary.iterdir())
        digests = {name: sha256_file(temporary / name) for name in written}
        write_json(temporary / "manifest.json", digests)
    _verify(folder)
    return folder


def _name(step: object) -> str:
    return f"step-{step:06d}" if isinstance(step, int) else ""


def _folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / _name(step)


def _folders(run_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    root = run_dir / "checkpoints"
    found = [p for p in root.glob("step-*") if p.is_dir() and _FOLDER.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def _verify(folder: Path) -> list[str]:
    """The groups of tensors in `folder`, every file of which is what was written.

    Raises:
        CorruptFileError: one is not, or is missing, or the folder is of another step.
    """
    manifest = read_json(folder / "manifest.json")
    # What the manifest leaves out would pass unseen, so what must be there is looked for.
    weights = _WHOLE if f"{_WHOLE}{_TENSORS}" in manifest else _WEIGHTS
    needed = {"state.json", *(f"{group}{_TENSORS}" for group in (weights, _OPTIMIZER))}
    for name in sorted({*manifest, *needed}):
        path = folder / Path(name).name
        digest = sha256_file(path) if path.is_file() else "no such file"
        if digest != manifest.get(name):
            raise CorruptFileError(
                "a checkpoint file is not what was written",
                where=path,
                got=digest,
                expected=manifest.get(name),
            )
    step = read_json(folder / "state.json").get("step")
    if folder.name != _name(step):
        raise CorruptFileError(
            "a checkpoint is of another step than its folder says",
            where=folder,
            got=f"step {step}",
            expected=folder.name,
        )
    return [name.removesuffix(_TENSORS) for name in manifest if name.endswith(_TENSORS)]


def _read(folder: Path) -> Checkpoint:
    from safetensors import SafetensorError

    try:
        groups = _verify(folder)
        content = read_json(folder / "state.json")
        return Checkpoint(
            folder,
            {group: StoredTensors(folder / f"{group}{_TENSORS}") for group in groups},
            TrainState(**content),  # pyright: ignore[reportArgumentType]
        )
    except (OSError, SafetensorError, TypeError) as error:
        raise CorruptFileError("not a checkpoint", where=folder, got=str(error)) from error


def latest_checkpoint(run_dir: Path, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None when there is none at all.

    No other process may be writing checkpoints of this run.

    Args:
        run_dir: of the run.
        warn: called with a line for each checkpoint that had to be passed over.

    Raises:
        CorruptFileError: there are checkpoints, and none of them is whole.
    """
    remove_leftovers(run_dir / "checkpoints")
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


def read_checkpoint(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint after `step` steps.

    Raises:
        CorruptFileError: it is not whole, or not there.
    """
    return _read(_folder_of(run_dir, step))


def remove_old(run_dir: Path, *, keep: int, keep_best: bool, whole: set[Path]) -> None:
    """Remove all but the newest `keep` checkpoints that are whole; damaged ones go too.

    One that is damaged does not count: with it, a good one would go too early. Each is
    verified once in a sitting.

    Args:
        run_dir: of the run.
        keep: how many, at least 1. Where fewer are whole, nothing is removed that is.
        keep_best: those that one of them names as the best stay too: a run may have to go on
            from any of them.
        whole: known to be so, such as those just saved; gets what is found to be.
    """
    kept: set[Path] = set()
    folders = _folders(run_dir)
    for folder in folders:
        if len(kept) < keep and _is_whole(folder, whole):
            kept.add(folder)
    if not kept:
        return
    if keep_best:
        kept |= {_folder_of(run_dir, step) for step in map(_best_step, kept) if step is not None}
    for folder in folders:
        if folder not in kept:
            whole.discard(folder)
            remove_folder(folder)


def _is_whole(folder: Path, whole: set[Path]) -> bool:
    if folder not in whole:
        try:
            _verify(folder)
        except (InceError, OSError):
            return False
        whole.add(folder)
    return True


def _best_step(folder: Path) -> int | None:
    try:
        step = read_json(folder / "state.json").get("best_step")
    except InceError:
        return None
    return step if isinstance(step, int) else None
