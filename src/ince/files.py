"""Files written whole: a temporary name beside the target, fsync, rename.

A reader sees the old file or the new one, never half of one, and a full disk
(`DiskFullError`) leaves the old one as it was and no temporary behind.
What ince writes, it writes through here.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ince.errors import CorruptFileError, DiskFullError, InputError

__all__ = [
    "read_json",
    "replace_file",
    "replace_folder",
    "sha256_bytes",
    "sha256_file",
    "write_json",
    "write_text",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                "no space left on the device",
                where=target,
                do="free some space and run the same command again; nothing half-written was kept",
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError, IsADirectoryError)):
            raise InputError(
                f"cannot write here: {error.strerror}",
                where=target,
                do="choose a folder that you may write to",
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is; some systems cannot sync folders.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it becomes `target`.

    Raises:
        DiskFullError: the disk filled; `target` is as it was.
        InputError: the folder cannot be written to.
    """
    target = Path(target)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes private files; results are as readable as any file of the user's.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            _sync_file(temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`.

    An existing `target` is moved aside first and removed last, so that a crash
    between the two renames loses neither.
    """
    target = Path(target)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o777 & ~mask)
            for path in temporary.rglob("*"):
                if path.is_file():
                    _sync_file(path)
            if target.exists():
                aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
                target.replace(aside / target.name)
                temporary.replace(target)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.replace(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(target.parent)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replace_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(target: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all. Non-finite numbers are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(target, text + "\n")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object that ince or a peer wrote.

    Raises:
        InputError: there is no such file.
        CorruptFileError: it is not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            "not readable as JSON", where=path, got=str(error), do="restore or remove the file"
        ) from error
    if not isinstance(value, dict):
        raise CorruptFileError("not a JSON object", where=path, got=type(value).__name__)
    return value


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
