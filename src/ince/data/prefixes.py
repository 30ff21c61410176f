"""Examples that begin alike share their beginning: computed once in a row, seen by all.

A system message, a task's fixed words: in a row of short examples most tokens may be such.
A row is a tree of *segments*. A segment holds tokens of one example, or of several that
agree on them, and continues its parent; a token sees its own segment before it and the
segments above. What an example sees is then exactly what it sees alone, at the same
positions, so its logits are the same, and so are the gradients, which add up in the shared
part as they would over its copies.

Only what predicts no target is shared: an example keeps for itself everything from the token
before its first target on. Dropout, where there is any, is drawn once for the shared part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ince.data.example import Example

__all__ = ["PrefixTree", "Segment", "num_shareable", "segments_of"]


@dataclass(frozen=True)
class Segment:
    """Tokens ``first`` to ``last`` (exclusive) of an example, following those of `parent`.

    Attributes:
        example: index in the row of one of the examples that have these tokens.
        first, last: places in the example, which are the tokens' positions.
        parent: index of the segment it continues, or -1 at a beginning.
        shared: several examples have it; none of its tokens is a target.
    """

    example: int
    first: int
    last: int
    parent: int
    shared: bool


def num_shareable(example: Example) -> int:
    """How many leading tokens others may share: all before the one that predicts a target."""
    first_target = next((i for i, target in enumerate(example.targets) if target), None)
    return example.num_tokens - 1 if first_target is None else max(0, first_target - 1)


def segments_of(examples: Sequence[Example]) -> tuple[Segment, ...]:
    """The segments of a row, each after its parent; every example ends in one of its own."""
    limits = [num_shareable(example) for example in examples]
    segments: list[Segment] = []
    # A group agrees on all tokens before `start`, which end in segment `parent`.
    waiting: list[tuple[list[int], int, int]] = [(list(range(len(examples))), 0, -1)]
    while waiting:
        group, start, parent = waiting.pop()
        if len(group) == 1:
            (own,) = group
            segments.append(Segment(own, start, examples[own].num_tokens, parent, shared=False))
            continue
        agreed = _agreement(examples, group, start, min(limits[i] for i in group))
        if agreed > start:
            segments.append(Segment(group[0], start, agreed, parent, shared=True))
            parent = len(segments) - 1
        # One branch for each next token; who may share no more goes on alone.
        branches: dict[tuple[int, int], list[int]] = {}
        for index in group:
            alone = limits[index] == agreed
            key = (index, -1) if alone else (-1, examples[index].input_ids[agreed])
            branches.setdefault(key, []).append(index)
        waiting += [(branch, agreed, parent) for branch in reversed(branches.values())]
    return tuple(segments)


def _agreement(examples: Sequence[Example], group: Sequence[int], start: int, limit: int) -> int:
    """The first place from `start` on at which the group's tokens differ; at most `limit`."""
    first = examples[group[0]].input_ids
    for place in range(start, limit):
        if any(examples[index].input_ids[place] != first[place] for index in group[1:]):
            return place
    return max(start, limit)


class PrefixTree:
    """What a row under construction shares, so that a candidate's cost is known at once."""

    def __init__(self) -> None:
        self._root: dict[int, dict] = {}  # pyright: ignore[reportMissingTypeArgument]

    def num_shared(self, example: Example, limit: int) -> int:
        """Leading tokens of `example` that the row has already; `limit` from `num_shareable`."""
        node = self._root
        for place in range(limit):
            below = node.get(example.input_ids[place])
            if below is None:
                return place
            node = below
        return limit

    def add(self, example: Example, limit: int) -> None:
        """Take in the shareable beginning of an example."""
        node = self._root
        for token in example.input_ids[:limit]:
            node = node.setdefault(token, {})
