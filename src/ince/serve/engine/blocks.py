"""Which blocks of the KV cache are whose, and which still hold a prefix that can be reused.

A block holds keys and values of 16 tokens. It is free, used by one or more sequences, or idle:
nobody uses it, but it is full and findable under the key of its prefix, until room is needed and
the block that was idle longest gives way. Only numbers are kept here; the tensors are elsewhere.

A key is found only while the block holds exactly what it names: a block gets its key once, after
its last token was computed, and loses it before it is given away.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ince.errors import InputError

__all__ = ["BLOCK_SIZE", "BlockPool"]

BLOCK_SIZE = 16
"""Tokens of a block."""


class BlockPool:
    """Counts the users of every block.

    Args:
        num_blocks: of the pool.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise InputError("a KV cache needs a block at least", got=num_blocks)
        self.num_blocks = num_blocks
        self._users = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        # Blocks without a key, the next one to be given away at the end.
        self._free = list(range(num_blocks - 1, -1, -1))
        # Blocks with a key and without users, idle longest first.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give: free ones and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks with users."""
        return self.num_blocks - self.num_available

    @property
    def num_findable(self) -> int:
        """Blocks that hold a prefix under a key."""
        return len(self._by_key)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of `keys` that is here; nobody's use is counted."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle_of(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` would no longer be available once they are shared."""
        return sum(block in self._idle for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Count one more user of each of these blocks, as `match` found them."""
        for block in blocks:
            if self._users[block] == 0:
                del self._idle[block]
            self._users[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one user each, without keys; None where there are not so many."""
        if count > self.num_available:
            return None
        given: list[int] = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._lose_key(block)
            self._users[block] = 1
            given.append(block)
        return given

    def seal(self, block: int, key: bytes) -> None:
        """Make a full block findable; where another block has this key, that one stays."""
        if self._users[block] < 1:
            raise InputError("a block that nobody uses cannot be sealed", got=block)
        if self._keys[block] is None and key not in self._by_key:
            self._keys[block] = key
            self._by_key[key] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Count one user less of each; given in the order of a sequence.

        The last ones become idle first, so that a prefix loses its end before its beginning.
        """
        for block in reversed(blocks):
            if self._users[block] < 1:
                raise InputError("a block was released that nobody uses", got=block)
            self._users[block] -= 1
            if self._users[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def forget(self) -> None:
        """Drop every key: no prefix is found any more. Users keep their blocks."""
        for block in [*self._by_key.values()]:
            self._lose_key(block)
        self._free += self._idle
        self._idle.clear()

    def _lose_key(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
            self._keys[block] = None
