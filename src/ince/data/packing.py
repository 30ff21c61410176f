"""Examples of different lengths into rows of one length, with little room left over.

Best fit, longest first: each example goes to the fullest row that still has room for it. For
many short examples this comes within a few tokens a row of the best there is. Examples in one
row do not see each other; `ince.data.batch` marks where they begin.

Rows follow the order in which the examples are given, so that a shuffled epoch has shuffled
rows; examples of equal length change places, and thus companions, from epoch to epoch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from ince.data.example import Example
from ince.errors import DataError

__all__ = ["Pack", "Row", "pack", "pack_rows", "single_rows"]


@dataclass(frozen=True)
class Pack:
    """Which examples share a row, in order, and how many tokens they have together."""

    examples: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True)
class Row:
    """Examples that stand in one row of a batch, in order."""

    examples: tuple[Example, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all its examples."""
        return sum(example.num_tokens for example in self.examples)


def pack(lengths: Sequence[int], max_length: int, order: Sequence[int] | None = None) -> list[Pack]:
    """Pack examples of these lengths into rows of at most `max_length` tokens.

    Each example of `order` is in exactly one row, whole. A function of its arguments alone.

    Args:
        lengths: tokens of each example.
        max_length: tokens of a row.
        order: indices into `lengths`, each at most once; all of them in turn when None.

    Raises:
        DataError: an example is longer than a row, or empty.
    """
    order = range(len(lengths)) if order is None else order
    for index in order:
        if not 0 < lengths[index] <= max_length:
            raise DataError(
                "an example does not fit into a row",
                where=f"example {index}",
                got=f"{lengths[index]} tokens",
                expected=f"1 to {max_length}",
            )
    place_of = {index: place for place, index in enumerate(order)}
    members: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> rows that have just that much
    rooms: list[int] = []  # the keys of with_room, ascending
    for index in sorted(order, key=lambda i: -lengths[i]):  # stable: equals stay in order
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            row, room = len(members), max_length
            members.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                rooms.pop(place)
        members[row].append(index)
        room -= lengths[index]
        if room:
            if room not in with_room:
                with_room[room] = []
                insort(rooms, room)
            with_room[room].append(row)
    # A row stands where its longest example stands in the order. Its earliest would put rows
    # of many short examples first in every epoch, since one of many is early.
    members.sort(key=lambda row: place_of[row[0]])
    return [
        Pack(tuple(sorted(row, key=place_of.__getitem__)), sum(lengths[i] for i in row))
        for row in members
    ]


def pack_rows(examples: Sequence[Example], order: Sequence[int], max_length: int) -> list[Row]:
    """The examples of `order`, packed into rows of at most `max_length` tokens; see `pack`.

    Raises:
        DataError: an example is longer than a row.
    """
    packs = pack([example.num_tokens for example in examples], max_length, order)
    return [Row(tuple(examples[i] for i in each.examples)) for each in packs]


def single_rows(examples: Sequence[Example], order: Sequence[int]) -> list[Row]:
    """A row for each example of `order`: what training without packing uses."""
    return [Row((examples[index],)) for index in order]
