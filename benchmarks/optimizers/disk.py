"""What the disk gives by itself: a file read and written in order, as state in a file is.

Each piece is read and written back to its place before the next, by plain system calls in one
thread, through the system's cache (as the pages do it) or past it, where the file system lets
one. It is the traffic of an update whose state lies in the file, and nothing else.
"""

import mmap
import os
import tempfile
import time


def sequential_copy_rate(directory, num_bytes, piece_bytes, *, cached):
    """Bytes read and written in a second."""
    num_pieces = max(1, num_bytes // piece_bytes)
    with tempfile.NamedTemporaryFile(dir=directory) as made, mmap.mmap(-1, piece_bytes) as piece:
        piece.write(os.urandom(piece_bytes))
        for _ in range(num_pieces):
            made.write(piece[:])
        made.flush()
        os.fsync(made.fileno())
        file = os.open(made.name, os.O_RDWR) if cached else _opened(made.name)
        try:
            began = time.perf_counter()
            for number in range(num_pieces):
                at = number * piece_bytes
                _whole(os.preadv(file, [piece], at), piece_bytes)
                _whole(os.pwritev(file, [piece], at), piece_bytes)
            seconds = time.perf_counter() - began
        finally:
            os.close(file)
    return 2 * num_pieces * piece_bytes / seconds


def _opened(name):
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return os.open(name, os.O_RDWR | direct)
    except OSError:
        return os.open(name, os.O_RDWR)


def _whole(count, expected):
    if count != expected:
        raise SystemExit(f"the disk moved {count} bytes of {expected}")
