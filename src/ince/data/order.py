"""The order in which an epoch visits its rows: shuffled, and the same everywhere.

An order is a function of (seed, epoch, number of rows) through SHA-256 alone: it does not
depend on the platform, on torch's version, or on random numbers drawn elsewhere. Resuming
takes no saved state, only the place that was reached: ``epoch_order(n, seed, epoch)[place:]``.
"""

import hashlib

import numpy as np

__all__ = ["epoch_order"]

_DIGEST_BYTES = 32


def epoch_order(num_items: int, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(num_items)``, one for each (seed, epoch)."""
    head, sha256 = b"ince-order/1:%d:%d:" % (seed, epoch), hashlib.sha256
    digests = b"".join([sha256(head + b"%d" % index).digest() for index in range(num_items)])
    # As bytes compare: by the first eight, and where those are alike by the next.
    words = np.frombuffer(digests, dtype=">u8").reshape(num_items, _DIGEST_BYTES // 8)
    columns = np.ascontiguousarray(words.T).astype(np.uint64)
    order = columns[0].argsort(kind="stable")
    first = columns[0][order]
    if (first[1:] == first[:-1]).any():
        order = np.lexsort(columns[::-1])
    found: list[int] = order.tolist()
    return found
