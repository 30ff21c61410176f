"""From what a user writes for a model to a folder that holds it.

A reference is, in this order:

1. a packaged name, such as ``smollm2-135m-instruct`` (``./name`` means the folder of that name);
2. a path: a model folder, or a GGUF file, which is converted once;
3. a hub id, ``owner/name``, downloaded by huggingface_hub into its own cache.

Weights that are pickles are never downloaded or opened, and code that comes with a model
is never run.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ince.errors import DiskFullError, ModelReferenceError, did_you_mean
from ince.models.cache import file_digest, folder_digest
from ince.models.gguf import convert_gguf, is_gguf, open_gguf
from ince.models.hub import card_license, download, hub_error
from ince.models.packaged import (
    PACKAGED_MODELS,
    PackagedModel,
    package_file,
    packaged_for_hub,
)

__all__ = ["ResolvedModel", "resolve"]

ModelKind = Literal["packaged", "hub", "folder", "gguf"]
Progress = Callable[[str, int, int], None]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DIGESTED = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is on this machine.

    Attributes:
        reference: as the user wrote it.
        name: how an adapter names its base: the hub id where there is one, else the path.
        kind: where it came from.
        folder: config, safetensors weights and tokenizer; of a GGUF file that was not
            converted, config and tokenizer only.
        source: the GGUF file that `folder` was made from, or None.
        license: as the model's card says, or None when it does not.
        revision: the hub commit, or None.
    """

    reference: str
    name: str
    kind: ModelKind
    folder: Path
    source: Path | None = None
    license: str | None = None
    revision: str | None = None

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what the model was read from.

        Of the GGUF file where there is one, else over every weight, config and
        tokenizer file. Computed at first use, remembered while the files stay as they are.
        """
        if self.source is not None:
            return file_digest(self.source)
        names = [p.name for p in self.folder.iterdir() if p.is_file() and p.suffix in _DIGESTED]
        return folder_digest(self.folder, names)

    @cached_property
    def weights_digest(self) -> str:
        """As `digest`, over the weights alone: what an adapter depends on."""
        if self.source is not None:
            return file_digest(self.source)
        return folder_digest(self.folder, [p.name for p in self.folder.glob("*.safetensors")])


def resolve(
    reference: str | Path,
    revision: str | None = None,
    *,
    convert: bool = True,
    progress: Progress | None = None,
) -> ResolvedModel:
    """Find the model that `reference` names, downloading or converting it where needed.

    Args:
        reference: a packaged name, a folder, a GGUF file, or a hub id.
        revision: branch, tag or commit; for hub ids only.
        convert: make a folder with weights of a GGUF file. Otherwise they stay in the file, for
            `open_source`, where they can be read from there.
        progress: told ``(stage, done, total)`` of what takes long.

    Raises:
        ModelReferenceError: no such model, or not one that ince can read.
        CorruptFileError: its files are damaged.
    """
    text = str(reference).strip()
    if not text:
        raise ModelReferenceError(
            "the model reference is empty",
            expected="a packaged name, a folder, a GGUF file or a hub id",
            do=f"for example {next(iter(PACKAGED_MODELS))}",
        )
    packaged = PACKAGED_MODELS.get(text) if isinstance(reference, str) else None
    if packaged is not None:
        return _packaged(text, packaged, revision, progress)
    path = _path(text)
    if path is not None and path.exists():
        return _local(text, path, revision, progress, convert=convert)
    if _looks_like_hub_id(text):
        return _hub(text, text, revision, progress)
    if path is None:
        raise ModelReferenceError("neither a path nor a name that a model can have", got=text)
    raise _unknown(text, path)


def _path(text: str) -> Path | None:
    """The text as a path, or None when no file could have this name."""
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Path(text).expanduser()
    except PermissionError as error:
        raise ModelReferenceError(
            "the model cannot be read: permission denied",
            where=text,
            do="ask the owner of the folder for the right to read it",
        ) from error
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, an unknown home
        return None
    return path


def _looks_like_hub_id(text: str) -> bool:
    return _HUB_ID.fullmatch(text) is not None and not text.lower().endswith(".gguf")


def _packaged(
    text: str, model: PackagedModel, revision: str | None, progress: Progress | None
) -> ResolvedModel:
    file = package_file(model) if revision is None else None
    if file is None:
        return _hub(text, model.hub_id, revision, progress)
    return ResolvedModel(
        reference=text,
        name=model.hub_id,
        kind="packaged",
        folder=convert_gguf(file, progress=progress),
        source=file,
        license=model.license,
    )


def _local(
    text: str, path: Path, revision: str | None, progress: Progress | None, *, convert: bool
) -> ResolvedModel:
    if revision is not None:
        raise ModelReferenceError(
            "a revision can be chosen for models from the hub only",
            where=path,
            got=revision,
            do="leave the revision out",
        )
    absolute = path.resolve()
    if path.is_file():
        if not is_gguf(path):
            raise ModelReferenceError(
                "this file is not a model that can be read",
                where=path,
                expected="a GGUF file, or a folder with config.json and safetensors weights",
                do="name the folder of the model; pickles (.bin, .pt) are never opened",
            )
        folder = None if convert else _described(path)
        if folder is None:
            folder = convert_gguf(path, progress=progress)
        return ResolvedModel(text, str(absolute), "gguf", folder, source=absolute)
    if not (path / "config.json").is_file():
        raise _not_a_model(path)
    return ResolvedModel(text, str(absolute), "folder", absolute, license=card_license(path))


def _described(path: Path) -> Path | None:
    """The folder with config and tokenizer of a GGUF file; None where it must be converted."""
    try:
        return open_gguf(path).folder
    except ModelReferenceError:  # an architecture that only transformers reads, or none at all
        return None


def _not_a_model(path: Path) -> ModelReferenceError:
    if (path / "adapter_config.json").is_file():
        return ModelReferenceError(
            "this folder holds an adapter, not a model",
            where=path,
            do="give its base as the model, and this folder as the adapter",
        )
    if (path / "run.json").is_file():
        return ModelReferenceError(
            "this folder is a run, not a model",
            where=path,
            do="give the run to a command that takes runs, or merge it into a model first",
        )
    inside = sorted(p.name for p in path.glob("*.gguf"))
    if inside:
        return ModelReferenceError(
            "this folder holds GGUF files; name one of them",
            where=path,
            got=", ".join(inside),
            do=f"use {path / inside[0]}",
        )
    return ModelReferenceError(
        "the folder has no config.json, so it is not a model",
        where=path,
        got=", ".join(sorted(p.name for p in path.iterdir())[:12]) or "an empty folder",
        expected="config.json, safetensors weights and a tokenizer",
    )


def _unknown(text: str, path: Path) -> ModelReferenceError:
    parent = path.parent
    nearby = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    if path.name == text:  # a bare word: a packaged name, or something in this folder
        models = [n for n in nearby if n.endswith(".gguf") or (parent / n / "config.json").exists()]
        suggestion = did_you_mean(text, [*PACKAGED_MODELS, *models])
        known = ", ".join(PACKAGED_MODELS)
        return ModelReferenceError(
            f"no model is named {text!r}",
            got=text,
            expected=f"a packaged name ({known}), a folder, a GGUF file, or owner/name on the hub",
            do=suggestion or f"for a model without a network, use {next(iter(PACKAGED_MODELS))}",
        )
    suggestion = did_you_mean(path.name, nearby)
    return ModelReferenceError(
        "no such model folder or GGUF file",
        where=path,
        got=text,
        expected="a folder with config.json, or a .gguf file",
        do=suggestion or "check the path; a hub id is written owner/name",
    )


def _hub(text: str, hub_id: str, revision: str | None, progress: Progress | None) -> ResolvedModel:
    try:
        folder = download(hub_id, revision, progress=progress)
    except DiskFullError:
        raise
    except Exception as error:  # no network, no such repository, no permission, a damaged download
        stand_in = packaged_for_hub(hub_id)
        file = package_file(stand_in) if stand_in and revision is None else None
        if stand_in is not None and file is not None:
            return _packaged(text, stand_in, None, progress)
        raise hub_error(text, hub_id, revision, error) from error
    if not (folder / "config.json").is_file():
        raise _not_a_model(folder)
    return ResolvedModel(
        reference=text,
        name=hub_id,
        kind="hub",
        folder=folder,
        license=card_license(folder),
        revision=folder.name,
    )
