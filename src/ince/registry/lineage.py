"""Where an adapter comes from: the facts of its run's record that name data, base and recipe.

They are digests and names, never the recipe or the data: a registry is shown to more people
than a run folder.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from ince.errors import AdapterError
from ince.record import RunRecord

__all__ = ["check_lineage_is_of", "find_adapter_folder", "read_lineage"]

_RECORD = "run.json"
_ADAPTER = "adapter"

# name here: path in the record
_FACTS = {
    "status": ("status",),
    "created": ("created",),
    "finished": ("finished",),
    "recipe_digest": ("recipe_digest",),
    "base": ("base", "name"),
    "base_reference": ("base", "reference"),
    "base_files_digest": ("base", "digest"),
    "train_data_digest": ("data", "train", "digest"),
    "eval_data_digest": ("data", "eval", "digest"),
    "adapter_digest": (_ADAPTER, "digest"),
    "num_tokens": ("training", "num_tokens"),
    "final_loss": ("training", "final_loss"),
    "ince": ("versions", "ince"),
}


def find_adapter_folder(folder: Path) -> Path:
    """The adapter's folder: `folder` itself, or the one inside when it is a run."""
    inside = folder / _ADAPTER
    return inside if (folder / _RECORD).is_file() and inside.is_dir() else folder


def read_lineage(adapter_folder: Path) -> dict[str, object] | None:
    """The facts in the ``run.json`` beside an adapter's folder, or None where there is none.

    Raises:
        CorruptFileError: it is not a run record.
    """
    folder = Path(adapter_folder)
    if not (folder.parent / _RECORD).is_file():
        return None
    content = RunRecord.read(folder.parent).content
    facts = {name: _at(content, path) for name, path in _FACTS.items()}
    return {name: value for name, value in facts.items() if value is not None}


def _at(content: Mapping[str, object], path: tuple[str, ...]) -> str | int | float | None:
    value: object = content
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float) else None


def check_lineage_is_of(lineage: Mapping[str, object], digest: str, *, where: Path) -> None:
    """Refuse a record of another adapter than the one beside it.

    Raises:
        AdapterError: the run recorded another digest.
    """
    recorded = lineage.get("adapter_digest", digest)
    if recorded != digest:
        raise AdapterError(
            "the adapter is not the one that its run recorded: its files were changed since",
            where=where,
            got=f"digest {digest}",
            expected=f"digest {recorded}",
            do=f"restore the files; or copy the adapter away from {_RECORD}, to put it without "
            "the run's facts",
        )
