"""The content of a registry: a folder for each adapter, named by its digest.

    content/DIGEST/     adapter_config.json, adapter_model.safetensors, and ince.json where the
                        base's digest is known: copies, checked, never changed
    incoming/           what is being copied; of writers that were killed, until `sweep`

A copy is made and checked in incoming/ and moved into place in one rename, by whoever holds the
database's write transaction. So a folder in content/ is always whole, and one without a row is
of a process that was killed in between: nobody's.
"""

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ince.errors import AdapterError, InceError, InputError
from ince.files import move_folder, replace_folder, write_json
from ince.registry.names import check_digest, is_digest

__all__ = ["ContentStore", "Intake"]

_CHUNK_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 8 << 20
_CONFIG_FACTS = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "task_type",
    "base_model_name_or_path",
)


@dataclass(frozen=True)
class Intake:
    """A checked copy that is not in place yet."""

    folder: Path
    digest: str
    base_digest: str | None
    num_bytes: int
    config: dict[str, object]
    """What is shown of the adapter: method, rank, scale, base, parameters."""


class ContentStore:
    """The folders of a registry's adapters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "content"
        self.incoming = folder / "incoming"

    def path(self, digest: str) -> Path:
        """Where the adapter of `digest` lies, if it is here.

        Raises:
            InputError: that is no digest.
        """
        return self.folder / check_digest(digest)

    def digests(self) -> set[str]:
        """Of all folders here."""
        if not self.folder.is_dir():
            return set()
        return {path.name for path in self.folder.iterdir() if is_digest(path.name)}

    @contextlib.contextmanager
    def intake(
        self, source: Path, *, base_digest: str | None, max_bytes: int | None
    ) -> Iterator[Intake]:
        """Copy the adapter in `source` and check the copy; it goes when it is not accepted.

        Args:
            source: an adapter folder of safetensors.
            base_digest: of the base, where it is known; else what the folder says.
            max_bytes: refuse more than this.

        Raises:
            InputError: no such folder.
            AdapterError: not an adapter, pickles, links out of the folder (but to the blobs of
                the same repository in the Hugging Face cache), weights that are not finite,
                another base than the folder says, too large.
            ConfigError: options that ince does not build.
            CorruptFileError: a file is cut off or garbled.
            DiskFullError: nothing half-written is left.
        """
        with contextlib.ExitStack() as held:
            self.incoming.mkdir(exist_ok=True)
            held.enter_context(_locked(self.incoming, shared=True))
            place = self.incoming / secrets.token_hex(8)
            held.callback(shutil.rmtree, place, ignore_errors=True)
            with replace_folder(place) as temporary:
                _copy(source, temporary, max_bytes)
                try:
                    intake = _checked(temporary, place, base_digest)
                except InceError as error:
                    _tell_of_source(error, temporary, source)
                    raise
            yield intake

    def accept(self, intake: Intake) -> None:
        """Move a copy into place. The write transaction is held."""
        target = self.path(intake.digest)
        if target.exists():  # what was found damaged gives way
            move_folder(target, self.incoming / secrets.token_hex(8))
        self.folder.mkdir(exist_ok=True)
        move_folder(intake.folder, target)

    def is_whole(self, digest: str) -> bool:
        """Whether the files of `digest` are here, and what they were."""
        from ince.formats.adapter import adapter_digest

        try:
            return adapter_digest(self.path(digest)) == digest
        except InceError:
            return False

    def note_base(self, digest: str, base_digest: str) -> None:
        """Write down the base of an adapter that was put without one."""
        from ince.formats.adapter import BASE_FILE

        write_json(self.path(digest) / BASE_FILE, {"base_digest": base_digest})

    def discard(self, digest: str) -> int:
        """Take a folder out of content/; `sweep` removes it. The write transaction is held.

        Returns:
            its bytes.
        """
        path = self.path(digest)
        num_bytes = sum(each.stat().st_size for each in path.iterdir() if each.is_file())
        self.incoming.mkdir(exist_ok=True)
        move_folder(path, self.incoming / secrets.token_hex(8))
        return num_bytes

    def sweep(self) -> bool:
        """Remove what lies in incoming/, unless a copy is being made there.

        Returns:
            whether it was free.
        """
        if not self.incoming.is_dir():
            return True
        try:
            with _locked(self.incoming, shared=False):
                for path in self.incoming.iterdir():
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold the system's lock on `folder`; it ends with the process, however that ends.

    Raises:
        BlockingIOError: it is held otherwise, and not `shared` is wanted.
    """
    import fcntl  # not on every platform

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _copy(source: Path, target: Path, max_bytes: int | None) -> None:
    from ince.formats.adapter import ADAPTER_FILES, BASE_FILE, CONFIG_FILE, WEIGHTS_FILE

    if not source.is_dir():
        raise InputError(
            "no such adapter folder",
            where=source,
            do="give a run, or the folder that holds adapter_config.json",
        )
    _copy_file(source, WEIGHTS_FILE, target / WEIGHTS_FILE, max_bytes)
    for name in (CONFIG_FILE, BASE_FILE):
        _copy_file(source, name, target / name, _MAX_CONFIG_BYTES)
    if not all((target / name).exists() for name in ADAPTER_FILES):
        # The reader of adapters says it better; it looks for pickles too.
        from ince.formats.adapter import adapter_digest

        adapter_digest(source)


def _copy_file(source: Path, name: str, target: Path, limit: int | None) -> None:
    """Copy a file of at most `limit` bytes, if there is one."""
    from ince.formats.adapter import WEIGHTS_FILE

    path = source / name
    try:
        real, folder = path.resolve(strict=True), source.resolve()
        if not real.is_relative_to(folder) and real.parent != _hub_blobs(folder):
            raise AdapterError(
                "a file of the adapter is a link that leads out of its folder",
                where=path,
                got=f"a link to {real}",
                expected="a file, or a link of the Hugging Face cache to its own blobs",
                do="copy the folder with its links followed, and put the copy: cp -rL",
            )
        # Opened without waiting: a pipe of this name must not hold the command.
        handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "its links lead nowhere"
        raise InputError(f"cannot read this file: {reason}", where=path) from error
    with os.fdopen(handle, "rb") as reader:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise AdapterError("not a regular file", where=path)
        copied = 0
        with target.open("wb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                copied += len(chunk)
                if limit is not None and copied > limit:
                    raise AdapterError(
                        "this file is too large",
                        where=path,
                        expected=f"at most {limit:,} bytes",
                        do=None
                        if name != WEIGHTS_FILE
                        else "raise the quota: ince registry tenant change --max-bytes",
                    )
                writer.write(chunk)


def _hub_blobs(folder: Path) -> Path | None:
    """Where the files of a snapshot in the Hugging Face cache lie, if `folder` is in one.

    models--ORG--NAME/snapshots/COMMIT/… has links to models--ORG--NAME/blobs/HASH, and nothing
    else of the machine is to be reached through them. `folder` is resolved, and so is what is
    compared with the answer: where blobs or one in it is a link itself, it leads elsewhere.
    """
    for place in folder.parents:
        if place.name == "snapshots" and place.parent.name.startswith("models--"):
            return place.parent / "blobs"
    return None


def _checked(temporary: Path, place: Path, base_digest: str | None) -> Intake:
    from ince.formats.adapter import (
        BASE_FILE,
        CONFIG_FILE,
        WEIGHTS_FILE,
        adapter_digest,
        read_adapter,
        read_base_digest,
    )
    from ince.lora.config import read_config

    config, tensors = read_adapter(temporary)
    read_config(config, where=temporary / CONFIG_FILE)
    if not tensors:
        raise AdapterError("the adapter has no weights", where=temporary / WEIGHTS_FILE)
    stated = read_base_digest(temporary)
    if stated is not None and base_digest not in (None, stated):
        raise AdapterError(
            "the adapter names another base than the one that was given",
            where=temporary / BASE_FILE,
            got=stated,
            expected=base_digest,
            do="give the base that it was trained on",
        )
    base_digest = base_digest or stated
    (temporary / BASE_FILE).unlink(missing_ok=True)
    if base_digest is not None:
        check_digest(base_digest)
        (temporary / BASE_FILE).write_text(json.dumps({"base_digest": base_digest}, indent=2))
    facts = {name: config[name] for name in _CONFIG_FACTS if config.get(name) is not None}
    return Intake(
        folder=place,
        digest=adapter_digest(temporary),
        base_digest=base_digest,
        num_bytes=sum(each.stat().st_size for each in temporary.iterdir()),
        config={**facts, "num_parameters": sum(tensor.numel() for tensor in tensors.values())},
    )


def _tell_of_source(error: InceError, temporary: Path, source: Path) -> None:
    """Let the error of a check of the copy speak of what was copied."""
    for part in ("where", "got", "do"):
        text = getattr(error, part)
        if isinstance(text, str):
            setattr(error, part, text.replace(str(temporary), str(source)))
