"""Names for prefixes: what the keys and values of a block depend on, as one digest.

Keys and values of a token depend on every token before it and on the adapter; whether a hit is
allowed depends on whose they are as well, since the time that a hit saves can be seen from outside.
So a chain of BLAKE2b digests begins with the tenant, the salt and the adapter's own digest, and
each block adds its tokens. Hashing tokens alone is what gives one adapter another one's cache.
"""

import hashlib
import struct
from array import array
from collections.abc import Sequence

from ince.serve.engine.blocks import BLOCK_SIZE

__all__ = ["PrefixKeys"]

_DIGEST_BYTES = 32


def _root(tenant: str, salt: str, adapter: str | None) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in (tenant, salt, "" if adapter is None else adapter):
        content = part.encode("utf-8", "surrogatepass")
        # The length stands before each part, so that no two triples read the same.
        digest.update(struct.pack("<Q", len(content)))
        digest.update(content)
    # An adapter of no name is not the base.
    digest.update(b"base" if adapter is None else b"adapter")
    return digest.digest()


class PrefixKeys:
    """The keys of a sequence's full blocks, made as they are asked for.

    Args:
        tenant: whose.
        salt: told apart further where a request asks for it.
        adapter: digest of the adapter; None for the base.
    """

    __slots__ = ("_keys", "_root")

    def __init__(self, tenant: str, salt: str, adapter: str | None) -> None:
        self._root = _root(tenant, salt, adapter)
        self._keys: list[bytes] = []

    def of(self, tokens: Sequence[int], num_blocks: int) -> list[bytes]:
        """Keys of the first `num_blocks` blocks of `tokens`, which only grow between calls."""
        keys = self._keys
        while len(keys) < num_blocks:
            start = len(keys) * BLOCK_SIZE
            content = array("q", tokens[start : start + BLOCK_SIZE])
            if len(content) < BLOCK_SIZE:
                break
            parent = keys[-1] if keys else self._root
            digest = hashlib.blake2b(parent, digest_size=_DIGEST_BYTES)
            digest.update(content.tobytes())
            keys.append(digest.digest())
        return keys[:num_blocks]
