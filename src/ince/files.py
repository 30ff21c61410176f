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
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ince.errors import CorruptFileError, DiskFullError, InputError, OutputError

__all__ = [
    "move_folder",
    "read_json",
    "remove_folder",
    "remove_leftovers",
    "replace_file",
    "replace_folder",
    "sha256_bytes",
    "sha256_file",
    "write_json",
    "write_text",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}

# Room for a long name's temporary: most systems allow 255 bytes.
_MAX_NAME_CHARACTERS = 40

# What `_beside` gives.
_BESIDE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.(?P<kind>tmp|old)")


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # Writers in other languages (safetensors is one) hide the error number in a text.
    return "No space left on device" in str(error)


@contextlib.contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Around the steps of ours: what the system refuses becomes an error of the tree."""
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED:
            raise InputError(
                f"cannot write here: {error.strerror}",
                where=target,
                do="choose a folder that you may write to",
            ) from error
        raise


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except OSError as error:
        raise InputError(f"cannot read this file: {error.strerror}", where=path) from error


@contextlib.contextmanager
def _full_disk(target: Path) -> Iterator[None]:
    """Around everything, the caller's writing included: a full disk is said as one."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFullError(
            "no space left on the device",
            where=target,
            do="free some space and run the same command again; nothing half-written was kept",
        ) from error


def _beside(target: Path, kind: str) -> Path:
    name = target.name[:_MAX_NAME_CHARACTERS]
    return target.parent / f".{name}.{secrets.token_hex(6)}.{kind}"


def _make_parents(target: Path) -> None:
    """Make the folders above `target`; those that are new are as durable as what goes in."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync_folder(folder.parent)


def _sync(path: Path) -> None:
    # Windows wants a handle that may write; elsewhere reading is enough, and a
    # copied file may be read-only.
    with path.open("rb" if os.name == "posix" else "rb+") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is; some systems cannot sync folders.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            _sync_folder(path)
        else:
            _sync(path)
    _sync_folder(folder)


@contextlib.contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it becomes `target`.

    Raises:
        DiskFullError: the disk filled; `target` is as it was.
        InputError: the folder cannot be written to.
    """
    target = Path(target)
    with _full_disk(target):
        with _write_errors(target):
            _make_parents(target)
            temporary = _beside(target, "tmp")
            # The mode is the one the user's other files get.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = temporary.stat().st_mode
        try:
            yield temporary
            with _write_errors(target):
                temporary.chmod(mode)
                _sync(temporary)
                temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _check_replaceable(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(
            "there is a file where a folder is to be written",
            where=target,
            do="choose another folder, or move the file away",
        )
    if Path.cwd().is_relative_to(target.resolve()):
        raise OutputError(
            "the folder you are working in cannot be replaced",
            where=target,
            do="choose another folder, such as one inside this one",
        )


def _swap(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; what stood there comes back when that fails."""
    if not target.exists():
        temporary.replace(target)
        return
    aside = _beside(target, "old")
    target.replace(aside)
    try:
        temporary.replace(target)
    except BaseException:
        aside.replace(target)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`.

    An existing `target` is moved aside first and removed last: a crash between the two
    renames leaves it beside, under a hidden name that ends in ``.old``.

    Raises:
        DiskFullError: the disk filled; `target` is as it was.
        InputError: the folder cannot be written to.
        OutputError: `target` is a file, or the working folder.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link
    _check_replaceable(target)
    with _full_disk(target):
        with _write_errors(target):
            _make_parents(target)
            temporary = _beside(target, "tmp")
            temporary.mkdir()
        try:
            yield temporary
            with _write_errors(target):
                _sync_tree(temporary)
                _swap(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(target.parent)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder within one file system; it is durable when this returns.

    Raises:
        DiskFullError: nothing was moved.
        InputError: the system refuses, or something is in the way.
    """
    with _full_disk(target), _write_errors(target):
        source.replace(target)
    _sync_folder(target.parent)
    _sync_folder(source.parent)


def remove_folder(folder: Path) -> None:
    """Remove `folder` under a name of its own, so that half of it is never taken for all of it.

    What is left when this is killed, or refused, `remove_leftovers` clears.
    """
    aside = _beside(folder, "tmp")
    with contextlib.suppress(OSError):
        folder.replace(aside)
        shutil.rmtree(aside)


def remove_leftovers(folder: Path) -> None:
    """Clear `folder` of what writers that were killed left in it, looking no deeper.

    Half-written files and folders go. What a writer had moved aside comes back when nothing
    took its place. No writer may be at work in `folder`.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        found = _BESIDE.fullmatch(path.name)
        if found is None:
            continue
        name = found["name"]
        if found["kind"] == "old" and not (folder / name).exists():
            if len(name) < _MAX_NAME_CHARACTERS:  # else its own name is longer, and not known
                path.replace(folder / name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replace_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(target: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all.

    Raises:
        ValueError: `value` holds a number that is not finite, which JSON has no word for.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, from someone's data: only an escape can hold it
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(target, text + "\n")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object that ince or a peer wrote.

    Raises:
        InputError: there is no such file, or it cannot be read.
        CorruptFileError: it is not a JSON object.
    """
    with _read_errors(path):
        data = Path(path).read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            "not readable as JSON", where=path, got=str(error), do="restore or remove the file"
        ) from error
    if not isinstance(value, dict):
        raise CorruptFileError(
            "not a JSON object",
            where=path,
            got=type(value).__name__,
            do="restore or remove the file",
        )
    return cast(dict[str, object], value)


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    with _read_errors(path), Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
