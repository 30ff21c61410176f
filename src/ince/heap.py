"""The memory of this process: what it holds, the most it held, giving back, and being refused.

glibc keeps what a program frees. With activations of many sizes coming and going it finds
no room among the leftovers and asks for more, so that a run of constant need grows: the demo
from 1.5 to 2.7 GB in 280 steps. Asking it now and then to return whole free pages costs
little and keeps memory at what a step needs. With blocks as large as activations mapped apart from
the heap (`blocks_apart`) there are no holes at all, for a price that depends on the system.

What is counted is the resident set, as every tool shows it: pages of mapped files in it can be
had back by the system, so it says a little more than what is needed. Linux tells it in
``/proc``; elsewhere only the most that was ever held is known.
"""

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = [
    "PeakBytes",
    "blocks_apart",
    "forget_peak",
    "give_back",
    "held_bytes",
    "is_out_of_memory",
    "most_held_bytes",
    "peak_within",
]

_STATUS = Path("/proc/self/status")
_PAGES = Path("/proc/self/statm")
_CLEAR = Path("/proc/self/clear_refs")
# "Set the peak resident set to what is resident now", as proc(5) has it.
_RESET_PEAK = "5"

_SECONDS_BETWEEN_SAMPLES = 0.002

# mallopt(3): blocks from this size on are mapped, and unmapped when they are freed. Saying so ends
# glibc's own growing of the size, up to the largest block that was ever freed or to 32 MiB.
_M_MMAP_THRESHOLD = -3
_APART_BYTES = 256 * 2**10
_LARGEST_THRESHOLD = 32 * 2**20
# By these a user has a say of their own.
_CHOSEN_BY = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# How allocators that raise a plain RuntimeError say it.
_WORDS = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")
_LIBRARY_WORDS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")

# A peak that was reset is remembered here, for who asks about the whole life of the process.
_most_before = 0


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, or None where the C library has none."""
    if sys.platform != "linux":
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's mallopt, or None where the C library is another."""
    if _trim() is None:
        return None
    try:
        option: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return None
    return option


def give_back() -> None:
    """Return freed pages to the system, where the C library can; else do nothing."""
    trim = _trim()
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def blocks_apart() -> Iterator[None]:
    """Inside, what is as large as an activation lies apart from the heap, where the C library can.

    A tensor that is freed under one that stays is a hole in the heap, which glibc up to 2.37 cannot
    even fill with one of the same size, since torch asks for aligned blocks: of a model of 360M in
    four bits a quarter of the peak was holes. Mapped blocks go back to the system at once, which
    clears the pages of the next: 2 to 17% of the time of training. Afterwards it is as glibc has
    it once large blocks were freed.
    Where the environment chooses (MALLOC_MMAP_THRESHOLD_, or GLIBC_TUNABLES), that is left alone.
    """
    set_option = _mallopt()
    if set_option is None or any(name in os.environ for name in _CHOSEN_BY):
        yield
        return
    set_option(_M_MMAP_THRESHOLD, _APART_BYTES)
    try:
        yield
    finally:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused, a device's memory among others."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):  # torch's own is one
        return False
    said = str(error)
    lower: Callable[[str], bool] = said.lower().__contains__
    return any(map(lower, _WORDS)) or any(word in said for word in _LIBRARY_WORDS)


def held_bytes() -> int:
    """The resident set now; where only the peak is known, that."""
    try:
        return int(_PAGES.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_since_reset()


def most_held_bytes() -> int:
    """The most this process has held at once, in all its life or since `forget_peak`."""
    return max(_most_before, _peak_since_reset())


def _peak_since_reset() -> int:
    # `getrusage` would count the program that started this one as well, where `/proc` does not.
    try:
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on every platform; used at run time only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> bool:
    """Count the peak from here on; False where the system does not let us."""
    global _most_before  # noqa: PLW0603  there is one process, and so one peak of it
    before = most_held_bytes()
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    _most_before = before
    return True


def forget_peak() -> None:
    """From here on `most_held_bytes` is about what comes now, where the system lets us.

    For runs that come one after the other in one process, each measured for itself.
    """
    global _most_before  # noqa: PLW0603  there is one process, and so one peak of it
    if _reset_peak():
        _most_before = 0


class PeakBytes:
    """The most that was held within a block; 0 until the block is left."""

    def __init__(self) -> None:
        self.num_bytes = 0


@contextlib.contextmanager
def peak_within() -> Iterator[PeakBytes]:
    """Measure the most that is held inside; blocks must not be nested.

    Where the system's own peak cannot be reset, a thread looks every two milliseconds, and
    what comes and goes between two looks is missed.
    """
    found = PeakBytes()
    if _reset_peak():
        try:
            yield found
        finally:
            found.num_bytes = _peak_since_reset()
        return
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SECONDS_BETWEEN_SAMPLES):
            found.num_bytes = max(found.num_bytes, held_bytes())

    watcher = threading.Thread(target=sample, name="ince-peak", daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found.num_bytes = max(found.num_bytes, held_bytes())
