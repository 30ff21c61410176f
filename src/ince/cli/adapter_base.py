"""The base of an adapter that is only looked at: found on this machine, or named by the user.

Looking at an adapter downloads nothing that the user did not name, and a base that is missing
or damaged leaves out a few columns and stops nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ince.errors import InceError

if TYPE_CHECKING:
    from ince.lora.insight import BaseWeights
    from ince.models import ResolvedModel

__all__ = ["CONFIG_FILE", "AdapterBase", "base_here", "named_base"]

Progress = Callable[[str, int, int], None]

CONFIG_FILE = "adapter_config.json"
"""What a folder has that is an adapter; `ince.formats.adapter` says so too, and loads torch."""


@dataclass(frozen=True)
class AdapterBase:
    """A base on this machine: its files, and its weights by name."""

    model: "ResolvedModel"
    weights: "BaseWeights"

    def doubt(self, adapter: Path) -> str | None:
        """Why it may not be the base that `adapter` was trained on; None when it is, or may be."""
        from ince.formats.adapter import read_base_digest

        trained_on = read_base_digest(adapter)
        if trained_on is None or trained_on == self.model.weights_digest:
            return None
        return "the weights of this base are not those that the adapter was trained on"


def named_base(reference: str, progress: Progress) -> AdapterBase:
    """The base that the user names; it may be downloaded.

    Raises:
        ModelReferenceError: no such model, or none with weights that can be read.
        CorruptFileError: its files are damaged.
    """
    from ince.models import resolve

    return _opened(resolve(reference, progress=progress))


def base_here(
    adapter: Path, known: dict[str, AdapterBase | str], progress: Progress
) -> AdapterBase | str | None:
    """The base that the adapter names, if it is on this machine; or why it is not looked at.

    Args:
        adapter: its folder.
        known: bases by reference that were looked for before; added to.
    """
    from ince.files import read_json

    config = read_json(adapter / CONFIG_FILE)
    reference, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(reference, str) or not reference:
        return None
    if reference not in known:
        try:
            found = _local_model(
                reference, revision if isinstance(revision, str) else None, progress
            )
            known[reference] = (
                "it is not on this machine, and nothing is downloaded without --base"
                if found is None
                else _opened(found)
            )
        except InceError as error:
            known[reference] = error.what
    return known[reference]


def _opened(model: "ResolvedModel") -> AdapterBase:
    from ince.lora.insight import BaseWeights

    return AdapterBase(model, BaseWeights(model.folder, name=model.name))


def _local_model(
    reference: str, revision: str | None, progress: Progress
) -> "ResolvedModel | None":
    from ince.models import resolve
    from ince.models.packaged import PACKAGED_MODELS, package_file, packaged_for_hub

    if reference not in PACKAGED_MODELS:
        if _is_path(reference):
            return resolve(reference, progress=progress)
        cached = _hub_cache(reference, revision)
        if cached is not None:
            return resolve(cached, progress=progress)
    packaged = PACKAGED_MODELS.get(reference) or packaged_for_hub(reference)
    if packaged is not None and revision is None and package_file(packaged) is not None:
        return resolve(packaged.name, progress=progress)
    return None


def _is_path(reference: str) -> bool:
    try:
        return Path(reference).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, an unknown home
        return False


def _hub_cache(reference: str, revision: str | None) -> Path | None:
    """The folder of a hub id in the local cache; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(reference, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None
    # Of a model that was asked for its config alone, there are no weights.
    found = Path(folder)
    return found if any(found.glob("model*.safetensors*")) else None
