"""Memory for pages, which goes back to the system the moment that it is let go."""

import contextlib
import mmap

import torch
from torch import Tensor

__all__ = ["page_memory"]

_HUGE = 2 << 20


def page_memory(num_bytes: int, *, pinned: bool) -> Tensor:
    """(num_bytes,) uint8 of zeros.

    Not from malloc, which keeps what is freed: a budget that shrinks would free nothing. What
    was never written takes no memory at all.

    Args:
        num_bytes: at least 1.
        pinned: an accelerator reads and writes it directly.
    """
    if pinned:
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)
    # Python maps shared memory unless told otherwise. That is of no process's own, so that tools
    # that look at what a process holds by itself do not see it, and has no huge pages.
    private = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and num_bytes >= _HUGE:
        with contextlib.suppress(OSError):  # a kernel without them
            private.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(private, dtype=torch.uint8, count=num_bytes)
