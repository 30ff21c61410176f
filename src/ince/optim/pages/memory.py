"""Memory for pages, which goes back to the system the moment that it is let go."""

import mmap

import torch
from torch import Tensor

__all__ = ["page_memory"]


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
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8, count=num_bytes)
