"""Adapters on the Hugging Face hub: the two files of one, and nothing else.

Downloads go through huggingface_hub into its own cache, which also answers when there is no
network. Weights that are pickles are never asked for.
"""

import errno
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

from ince.errors import AdapterError, DiskFullError, InputError, did_you_mean
from ince.formats.adapter import ADAPTER_FILES, WEIGHTS_FILE

__all__ = ["HubOptions", "adapter_folder", "is_hub_id", "refuse_options", "upload_adapters"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class HubOptions:
    """Where on the hub, and how to get it: names and meanings of huggingface_hub."""

    subfolder: str | None = None
    """In the repository, or in a folder here."""
    revision: str | None = None
    """Branch, tag or commit."""
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From keyword arguments.

        Raises:
            InputError: one is not known.
        """
        known = [field.name for field in fields(cls)]
        refuse_options({name: value for name, value in options.items() if name not in known}, known)
        return cls(**options)


def refuse_options(options: Mapping[str, Any], known: list[str]) -> None:
    """Refuse arguments that would have no effect.

    Raises:
        InputError: there are any.
    """
    for name in options:
        raise InputError(
            f"no such argument: {name}",
            expected=", ".join(known),
            do=did_you_mean(name, known) or "leave it out: it would have no effect",
        )


def is_hub_id(text: str) -> bool:
    """Whether `text` could be a repository: a name, or an owner and a name."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def adapter_folder(
    reference: str | PathLike[str],
    options: HubOptions,
    files: Sequence[str] = ADAPTER_FILES,
) -> Path:
    """The folder of an adapter: one here, or one that is downloaded.

    A folder that is not here comes back as it is when it cannot be on the hub: who opens it
    says what is wrong.

    Args:
        reference: a folder, or a repository's name.
        options: of the hub; `subfolder` is of a folder here too.
        files: that are needed of it.

    Raises:
        InputError: there is no such repository or revision, or the hub cannot be reached.
        AdapterError: the repository does not hold the files.
    """
    path, name = Path(reference), str(reference)
    found = path / options.subfolder if options.subfolder else path
    if found.is_dir() or path.exists() or not is_hub_id(name):
        return found
    return _download(name, options, files)


def _download(hub_id: str, options: HubOptions, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    prefix = f"{options.subfolder.strip('/')}/" if options.subfolder else ""
    try:
        folder = snapshot_download(
            hub_id,
            revision=options.revision,
            cache_dir=options.cache_dir,
            token=options.token,
            force_download=options.force_download,
            local_files_only=options.local_files_only,
            allow_patterns=[prefix + name for name in files],
        )
    except Exception as error:
        raise _error(hub_id, options.revision, error) from error
    found = Path(folder) / prefix
    missing = [name for name in files if not (found / name).is_file()]
    if missing:
        raise AdapterError(
            f"the repository is no adapter that can be read: {' and '.join(missing)} missing",
            where=f"{hub_id}/{prefix}".rstrip("/"),
            expected=" and ".join(files),
            do="weights in pickle form (adapter_model.bin) are not read: save them again in PEFT "
            f"with safe_serialization=True, which writes {WEIGHTS_FILE}",
        )
    return found


def upload_adapters(
    save: Callable[[Path], None],
    hub_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    commit_message: str | None,
    create_pr: bool,
) -> str:
    """Write adapters with `save` and put them into a repository, made when missing.

    Returns:
        The address of the commit.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    if not is_hub_id(hub_id):
        raise InputError("not the name of a repository", got=hub_id, expected="OWNER/NAME")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        save(folder)
        try:
            api = HfApi(token=token)
            repo = api.create_repo(hub_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or "Upload adapter",
                create_pr=create_pr,
            )
        except Exception as error:
            raise _error(hub_id, revision, error) from error
    return str(commit)


def _error(hub_id: str, revision: str | None, error: Exception) -> Exception:
    """The error to raise for one of huggingface_hub's; itself when it is none of those."""
    from huggingface_hub import errors

    known: tuple[tuple[type[Exception], str, str], ...] = (
        (
            errors.GatedRepoError,
            f"{hub_id} may be used only by those who accepted its terms",
            "accept them on its page, then run `hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            f"{hub_id} has no revision {revision!r}",
            "use a branch, tag or commit of the repository",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the hub has no repository {hub_id!r}, or not for you",
            "check owner and name; for a private one run `hf auth login`",
        ),
    )
    reason = " ".join(str(error).split()) or type(error).__name__
    for kind, what, do in known:
        if isinstance(error, kind) and not isinstance(error, errors.LocalEntryNotFoundError):
            return InputError(what, got=reason, do=do)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "no space left while downloading the adapter",
            where=hub_id,
            do="free some space, or set HF_HOME to a folder on another disk",
        )
    # Connections are httpx's, whose errors have no base in common with huggingface_hub's.
    of_network = type(error).__module__.partition(".")[0].startswith("httpx")
    if of_network or isinstance(error, errors.HFValidationError | OSError):
        return InputError(
            f"{hub_id!r} is neither a folder here nor on the hub as far as it can be reached",
            where="tried the folder, then the hub and its local cache",
            got=reason,
            do="give the folder of an adapter, which needs no network",
        )
    return error
