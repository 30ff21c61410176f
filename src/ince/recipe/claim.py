"""A run folder belongs to one process at a time.

Two processes that go on with one run would take turns in spoiling its log and its
checkpoints. The lock is the system's, on the folder itself: it ends with the process,
however that ends, and leaves nothing behind. Where a file system or a platform has no locks
there is none, and nothing is refused.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ince.errors import InputError, OutputError
from ince.files import remove_leftovers

__all__ = ["claimed"]


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, `folder` is this process's; what killed writers left in it is gone.

    It is made when there is none. What stands there and is no folder is left to others to refuse.

    Raises:
        OutputError: another process is at work in it.
        InputError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the output folder: {error.strerror}",
            where=folder,
            do="choose a folder that you may write to",
        ) from error
    with contextlib.ExitStack() as held:
        if os.name == "posix":
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            _lock(handle, folder)
        remove_leftovers(folder)
        yield


def _lock(handle: int, folder: Path) -> None:
    import fcntl  # not on every platform

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            "another process is at work in the output folder",
            where=folder,
            do="wait until it is done or stop it, or choose another output folder",
        ) from error
    except OSError:
        return  # a file system without locks
