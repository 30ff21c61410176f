"""Saving on a disk that is full for the time being: pause, say what is missing, try again.

A run of days must not end because somebody's download filled the disk for a minute. Waits
grow, and end; the last good checkpoint is untouched all the while.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ince.errors import CorruptFileError, DiskFullError, InceError, TrainingError
from ince.units import format_bytes, format_seconds

__all__ = ["save_patiently"]

# A wait is cut into these, so that Ctrl-C is heard.
_NAP_SECONDS = 0.1


def save_patiently(
    save: Callable[[], Path],
    *,
    folder: Path,
    num_bytes: int,
    retries: int,
    wait_seconds: float,
    good: str,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Path:
    """Call `save` until it succeeds or patience ends; returns what it does.

    Args:
        save: writes whole or not at all.
        folder: on the disk that is written to.
        num_bytes: that `save` needs, about.
        retries: after the first attempt.
        wait_seconds: before the first of them; each wait is twice the one before.
        good: where the run can go on, for the last message.
        say: is told before each wait.
        stopped: whether somebody asked the run to stop; one attempt is then made at once.

    Raises:
        DiskFullError: there is still no room.
        TrainingError: the disk fails in another way.
    """
    from safetensors import SafetensorError

    wait, left = wait_seconds, retries
    while True:
        try:
            return save()
        except (DiskFullError, CorruptFileError, SafetensorError, OSError) as error:
            if left == 0 or stopped():
                raise _given_up(error, folder, num_bytes, good) from error
            what = getattr(error, "what", str(error))
        say(
            f"a checkpoint cannot be saved: {what}; {_room(folder, num_bytes)}. "
            f"The run pauses for {format_seconds(wait)}, then tries again ({left} left)"
        )
        _sleep(wait, stopped)
        wait *= 2
        left -= 1


def _given_up(error: Exception, folder: Path, num_bytes: int, good: str) -> InceError:
    do = f"run the same command again: the run goes on {good}"
    if isinstance(error, DiskFullError):
        return DiskFullError(
            "no space left for a checkpoint, and patience is at its end",
            where=folder,
            got=_room(folder, num_bytes),
            do=f"free some space, then {do}",
        )
    return TrainingError("a checkpoint cannot be saved", where=folder, got=str(error), do=do)


def _room(folder: Path, num_bytes: int) -> str:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    needed = f"it takes {format_bytes(num_bytes)}, {format_bytes(free)} are free"
    if free >= num_bytes:
        return f"{needed}: a quota may be used up"
    return f"{needed}, {format_bytes(num_bytes - free)} are missing"


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not stopped():
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _NAP_SECONDS))
