"""``sweep.json``: what a sweep is and how far it got, written whole at every turn.

    format      "ince-sweep/1"
    status      "running" | "interrupted" | "failed" | "done"
    created, updated             ISO 8601, UTC
    identity    SHA-256 by part ("candidates", "halving", "data"): the same sweep or another
    recipe      name of the recipe file
    keys        the keys that vary
    eta, min_steps
    rungs       [{"share": [1, 9], "num_candidates": 9}]
    candidates  [{"name" (its folder), "values" {key: as written}, "num_steps" of the whole
                 training, "status", "losses" [held-out, one for each rung reached], "steps",
                 "train_loss", "tokens_per_second", "peak_bytes", "seconds", "starts",
                 "error" {"type", "what"}}]
    best        name of the best candidate | null
    remarks     what a reader should know

A candidate's status is "waiting" (not begun), "going on", "stopped" (others were better),
"done" (trained to the end) or "failed".
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ince.errors import CorruptFileError, OutputError
from ince.files import read_json, sha256_file, write_json
from ince.search.grid import Candidate
from ince.search.halving import Rung

__all__ = ["SWEEP_FILES", "SWEEP_FORMAT", "SweepState", "sweep_identity"]

SWEEP_FORMAT = "ince-sweep/1"
# What a sweep's folder holds besides a folder for each candidate.
SWEEP_FILES = frozenset({"best.yaml", "sweep.html", "sweep.json", "sweep.png"})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sweep_identity(candidates: Sequence[Candidate], *, eta: int, min_steps: int) -> dict[str, str]:
    """What makes a sweep the one it is: its candidates, its halving and the bytes of its data."""
    recipes = [candidate.recipe for candidate in candidates]
    files = sorted(
        {path for recipe in recipes for path in (recipe.data.train, recipe.data.eval) if path}
    )
    return {
        "candidates": _digest([(each.name, each.recipe.digest()) for each in candidates]),
        "halving": _digest([eta, min_steps]),
        "data": _digest([sha256_file(Path(path)) for path in files]),
    }


class SweepState:
    """The content of one ``sweep.json``."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    @classmethod
    def create(
        cls,
        folder: Path,
        candidates: Sequence[Candidate],
        *,
        identity: Mapping[str, str],
        recipe: str,
        eta: int,
        min_steps: int,
        rungs: Sequence[Rung],
        num_steps: Sequence[int],
        remarks: Sequence[str],
    ) -> "SweepState":
        """Begin a sweep in `folder`, and save it."""
        content: dict[str, Any] = {
            "format": SWEEP_FORMAT,
            "status": "running",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "updated": None,
            "identity": dict(identity),
            "recipe": recipe,
            "keys": [*candidates[0].values],
            "eta": eta,
            "min_steps": min_steps,
            "rungs": [
                {
                    "share": [rung.share.numerator, rung.share.denominator],
                    "num_candidates": rung.num_candidates,
                }
                for rung in rungs
            ],
            "candidates": [
                {
                    "name": candidate.name,
                    "values": dict(candidate.values),
                    "num_steps": steps,
                    "status": "waiting",
                    "losses": [],
                    "steps": 0,
                    "train_loss": None,
                    "tokens_per_second": None,
                    "peak_bytes": None,
                    "seconds": 0.0,
                    "starts": 0,
                    "error": None,
                }
                for candidate, steps in zip(candidates, num_steps, strict=True)
            ],
            "best": None,
            "remarks": [*remarks],
        }
        state = cls(folder / "sweep.json", content)
        state.save()
        return state

    @classmethod
    def open(
        cls, folder: Path, *, identity: Mapping[str, str], fresh: bool = False
    ) -> "SweepState | None":
        """The sweep in `folder`, to be continued, or None where one may begin.

        Args:
            folder: of the sweep.
            identity: of the sweep that is asked for.
            fresh: remove an earlier sweep first.

        Raises:
            OutputError: the folder holds another sweep, or something else.
            CorruptFileError: its ``sweep.json`` cannot be read.
        """
        path = folder / "sweep.json"
        if folder.exists() and not folder.is_dir():
            raise OutputError("the sweep's folder is a file", where=folder, expected="a folder")
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        if not path.is_file():
            raise OutputError(
                "the folder is not empty, and holds no sweep",
                where=folder,
                got=", ".join(sorted(each.name for each in folder.iterdir())[:5]),
                do="choose another folder with --out",
            )
        if fresh:
            _clear(folder, path)
            return None
        content = _read(path)
        known = content["identity"]
        other = [part for part, digest in identity.items() if known.get(part) != digest]
        if other:
            raise OutputError(
                "the folder holds another sweep",
                where=folder,
                got=f"other {' and '.join(other)}",
                do="choose another folder with --out, or start again in this one with --fresh",
            )
        return cls(path, content)

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The candidates, in the order of the grid."""
        return self.content["candidates"]

    def save(self) -> None:
        """Write it whole."""
        self.content["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path, self.content)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    if content.get("format") != SWEEP_FORMAT:
        raise CorruptFileError(
            "not a sweep of a known format",
            where=path,
            got=content.get("format"),
            expected=SWEEP_FORMAT,
        )
    if not _is_whole(content):
        raise CorruptFileError(
            "parts of the sweep's state are missing",
            where=path,
            do="restore the file, or start again with --fresh",
        )
    return content


def _is_whole(content: Mapping[str, Any]) -> bool:
    candidates = content.get("candidates")
    return (
        isinstance(content.get("identity"), dict)
        and isinstance(content.get("rungs"), list)
        and isinstance(candidates, list)
        and all(
            isinstance(each, dict)
            and isinstance(each.get("name"), str)
            and isinstance(each.get("num_steps"), int)
            and isinstance(each.get("losses"), list)
            for each in candidates
        )
    )


def _clear(folder: Path, path: Path) -> None:
    """Remove a sweep, and nothing that is not of it."""
    try:
        names = {str(each["name"]) for each in _read(path)["candidates"]}
    except CorruptFileError:
        # Which folders are its candidates only the file could say; runs they are all the same.
        names = {each.name for each in folder.iterdir() if (each / "run.json").is_file()}
    foreign = [p.name for p in folder.iterdir() if p.name not in names | SWEEP_FILES]
    if foreign:
        raise OutputError(
            "the folder holds what is not of a sweep, so it cannot be cleared",
            where=folder,
            got=", ".join(sorted(foreign)[:5]),
            do="choose another folder with --out",
        )
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
