"""The order in which an epoch visits its rows: shuffled, and the same everywhere.

An order is a function of (seed, epoch, number of rows) through SHA-256 alone: it does not
depend on the platform, on torch's version, or on random numbers drawn elsewhere. Resuming
takes no saved state, only the place that was reached: ``epoch_order(n, seed, epoch)[place:]``.
"""

import hashlib

__all__ = ["epoch_order"]


def epoch_order(num_items: int, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(num_items)``, one for each (seed, epoch)."""

    def key(index: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"ince-order/1:{seed}:{epoch}:{index}".encode()).digest(), index

    return sorted(range(num_items), key=key)
