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

import numpy as np

from ince.data.example import Example
from ince.data.prefixes import Segment, agreements, segments_of
from ince.errors import DataError

__all__ = ["PackingFacts", "Row", "pack_rows", "single_rows"]

# More would pack a little tighter, for time that grows with it.
_WINDOW = 256


@dataclass(frozen=True)
class Row:
    """Examples that stand in one row of a batch, in order."""

    examples: tuple[Example, ...]
    share: bool = True
    """Whether those that begin alike share their beginning."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What stands where; shared beginnings once."""
        return segments_of(self.examples, share=self.share)

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


def pack_rows(
    examples: Sequence[Example], order: Sequence[int], max_length: int, *, share: bool = True
) -> list[Row]:
    """The examples of `order`, each whole in one row of at most `max_length` tokens.

    A function of its arguments alone.

    Args:
        examples: to choose from.
        order: indices into `examples`.
        max_length: tokens of a row.
        share: examples of a row share what they begin with.

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
        window = [examples[i] for i in order[start : start + _WINDOW]]
        rows += _pack_window(window, max_length, share)
    return rows


def _pack_window(window: Sequence[Example], max_length: int, share: bool) -> list[Row]:
    num = len(window)
    shared = agreements(window) if share else np.zeros((num, num), dtype=np.int32)
    # Of each row: its room, and what each example would find in it.
    room = np.full(num, max_length)
    found = np.zeros((num, num), dtype=np.int32)
    members: list[list[int]] = []
    for place, example in enumerate(window):
        left = room[: len(members)] + found[: len(members), place] - example.num_tokens
        fitting = np.flatnonzero(left >= 0)
        if len(fitting):
            chosen = int(fitting[left[fitting].argmin()])  # the first of those with the least
        else:
            chosen = len(members)
            members.append([])
        room[chosen] += found[chosen, place] - example.num_tokens
        np.maximum(found[chosen], shared[place], out=found[chosen])
        members[chosen].append(place)
    rows = [Row(tuple(window[place] for place in row), share) for row in members]
    for row, left_over in zip(rows, room.tolist(), strict=False):
        # Known here; found anew it would need the segments of every row of an epoch.
        vars(row)["num_tokens"] = max_length - left_over
    return rows


def single_rows(examples: Sequence[Example], order: Sequence[int]) -> list[Row]:
    """A row for each example of `order`: what training without packing uses."""
    return [Row((examples[index],)) for index in order]
