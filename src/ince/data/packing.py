"""Examples of different lengths into rows of one length, with little room left over.

Examples in one row do not see each other, but those that begin alike share the beginning
(`ince.data.prefixes`), so what an example costs depends on its company. Each goes where it
leaves the least room, in the order given: companions are chance neighbors, not of a kind.
Longest first would pack a little tighter, and make rows, and so steps, of one kind of
example each, which a training run with small batches notices. Rows are packed anew in
every epoch, and are the same ones whenever asked for again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ince.data.example import Example
from ince.data.prefixes import PrefixTree, Segment, num_shareable, segments_of
from ince.errors import DataError

__all__ = ["PackingFacts", "Row", "pack_rows", "single_rows"]

# More would pack a little tighter, for time that grows with it.
_WINDOW = 256


@dataclass(frozen=True)
class Row:
    """Examples that stand in one row of a batch, in order."""

    examples: tuple[Example, ...]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What stands where; shared beginnings once."""
        return segments_of(self.examples)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the row, shared beginnings counted once."""
        return sum(segment.last - segment.first for segment in self.segments)


@dataclass(frozen=True)
class PackingFacts:
    """How well rows are filled.

    Attributes:
        num_rows: of `max_length` tokens each.
        num_tokens: that stand in them, shared beginnings counted once.
        num_shared: tokens that shared beginnings save.
        max_length: of a row.
    """

    num_rows: int
    num_tokens: int
    num_shared: int
    max_length: int

    @classmethod
    def of(cls, rows: Sequence[Row], max_length: int) -> "PackingFacts":
        """The facts of packed rows."""
        num_tokens = sum(row.num_tokens for row in rows)
        whole = sum(example.num_tokens for row in rows for example in row.examples)
        return cls(len(rows), num_tokens, whole - num_tokens, max_length)

    @property
    def share_full(self) -> float:
        """Of the rows' places, those that hold a token."""
        return self.num_tokens / (self.num_rows * self.max_length) if self.num_rows else 0.0

    @property
    def share_saved(self) -> float:
        """Of the examples' tokens, those that need no place of their own."""
        whole = self.num_tokens + self.num_shared
        return self.num_shared / whole if whole else 0.0

    def __str__(self) -> str:
        text = f"packed into {self.num_rows:,} rows, {self.share_full:.1%} full"
        if self.num_shared:
            text += f"; shared beginnings save {self.share_saved:.0%} of the tokens"
        return text


class _OpenRow:
    """A row that still takes examples."""

    def __init__(self, max_length: int) -> None:
        self.members: list[int] = []
        self.room = max_length
        self._tree = PrefixTree()

    def cost(self, example: Example, limit: int) -> int:
        return example.num_tokens - self._tree.num_shared(example, limit)

    def take(self, place: int, example: Example, limit: int) -> None:
        self.members.append(place)
        self.room -= self.cost(example, limit)
        self._tree.add(example, limit)


def pack_rows(examples: Sequence[Example], order: Sequence[int], max_length: int) -> list[Row]:
    """The examples of `order`, each whole in one row of at most `max_length` tokens.

    A function of its arguments alone.

    Args:
        examples: to choose from.
        order: indices into `examples`.
        max_length: tokens of a row.

    Raises:
        DataError: an example is longer than a row, or empty.
    """
    for index in order:
        if not 0 < examples[index].num_tokens <= max_length:
            raise DataError(
                "an example does not fit into a row",
                where=examples[index].source,
                got=f"{examples[index].num_tokens} tokens",
                expected=f"1 to {max_length}",
            )
    rows: list[Row] = []
    for start in range(0, len(order), _WINDOW):
        rows += _pack_window([examples[i] for i in order[start : start + _WINDOW]], max_length)
    return rows


def _pack_window(window: Sequence[Example], max_length: int) -> list[Row]:
    limits = [num_shareable(example) for example in window]
    rows: list[_OpenRow] = []
    for place, (example, limit) in enumerate(zip(window, limits, strict=True)):
        least, chosen = max_length + 1, None
        for row in rows:
            left = row.room - row.cost(example, limit)
            if 0 <= left < least:
                least, chosen = left, row
        if chosen is None:
            chosen = _OpenRow(max_length)
            rows.append(chosen)
        chosen.take(place, example, limit)
    return [Row(tuple(window[i] for i in row.members)) for row in rows]


def single_rows(examples: Sequence[Example], order: Sequence[int]) -> list[Row]:
    """A row for each example of `order`: what training without packing uses."""
    return [Row((examples[index],)) for index in order]
