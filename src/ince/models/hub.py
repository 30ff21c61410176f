"""Models from the hub: what is downloaded, and what is said when it cannot be.

Downloads go through huggingface_hub into its own cache, which also answers when there is
no network. Weights that are pickles are never asked for.
"""

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ince.errors import DiskFullError, ModelReferenceError, did_you_mean
from ince.models.packaged import PACKAGED_MODELS, packaged_for_hub
from ince.models.quiet import quiet_transformers

__all__ = ["card_license", "download", "hub_error"]

_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "README.md")
# Subfolders hold other formats, and "consolidated" the same weights under other names.
_IGNORED = ("*/*", "consolidated*")


def download(
    hub_id: str,
    revision: str | None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The folder with the model's files, from the hub or from its local cache.

    Raises:
        DiskFullError: no space for the download.
        Exception: whatever huggingface_hub raises; `hub_error` turns it into one of ours.
    """
    from huggingface_hub import snapshot_download

    if progress is not None:
        progress("downloading", 0, 1)
    try:
        # The hub's own bars show a download of minutes; they belong on a terminal only.
        with quiet_transformers(bars=sys.stderr.isatty()):
            folder = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(_PATTERNS),
                ignore_patterns=list(_IGNORED),
            )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                "no space left while downloading the model",
                where=hub_id,
                do="free some space, or set HF_HOME to a folder on another disk",
            ) from error
        raise
    if progress is not None:
        progress("downloading", 1, 1)
    return Path(folder)


def hub_error(
    text: str, hub_id: str, revision: str | None, error: Exception
) -> ModelReferenceError:
    """The error to raise when the hub did not give the model.

    Args:
        text: the reference as the user wrote it.
        hub_id: what the hub was asked for.
        revision: the revision asked for, if any.
        error: what huggingface_hub raised.
    """
    from huggingface_hub import errors

    reason = " ".join(str(error).split()) or type(error).__name__
    tried = f"tried the hub for {hub_id}"
    if not isinstance(error, errors.LocalEntryNotFoundError):
        known: tuple[tuple[type[Exception], str, str], ...] = (
            (
                errors.GatedRepoError,
                f"{hub_id} may be used only by those who accepted its terms",
                "accept them on the model's page, then run `hf auth login`",
            ),
            (
                errors.RevisionNotFoundError,
                f"{hub_id} has no revision {revision!r}",
                "use a branch, tag or commit of the repository",
            ),
            (
                errors.RepositoryNotFoundError,
                f"the hub has no model {hub_id!r}, or not for you",
                "check owner and name; for a private model run `hf auth login`",
            ),
        )
        for kind, what, do in known:
            if isinstance(error, kind):
                return ModelReferenceError(what, where=tried, got=text, do=do)
    packaged = PACKAGED_MODELS.get(text) or packaged_for_hub(hub_id)
    if packaged is not None:
        return ModelReferenceError(
            f"{text} is not installed, and the hub cannot be reached",
            where=f"tried the package {packaged.package}, then the hub for {hub_id}",
            got=reason,
            do=packaged.install_command,
        )
    names = ", ".join(PACKAGED_MODELS)
    path = Path(text)
    nearby = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    suggestion = did_you_mean(path.name, nearby)
    return ModelReferenceError(
        f"the model {hub_id!r} is neither a folder here nor on the hub as far as it can be reached",
        where=f"tried the folder {text}, then the hub and its local cache",
        got=reason,
        expected="a folder, a GGUF file, or a hub id while there is a network",
        do=(suggestion + ", or " if suggestion else "")
        + f"use a local folder or a packaged model ({names}), which need no network",
    )


def card_license(folder: Path) -> str | None:
    """The license in the front matter of the model's README, or None."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", matter[1], re.MULTILINE) if matter else None
    return found[1].strip("\"'") if found else None
