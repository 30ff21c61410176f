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
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ince.data.example import Example

__all__ = ["Segment", "agreements", "num_shareable", "segments_of"]


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
    try:
        return max(0, example.targets.index(True) - 1)
    except ValueError:
        return example.num_tokens - 1


def segments_of(examples: Sequence[Example], *, share: bool = True) -> tuple[Segment, ...]:
    """The segments of a row, each after its parent; every example ends in one of its own.

    Without `share` each example is one segment, beside the others.
    """
    if not share:
        return tuple(
            Segment(index, 0, example.num_tokens, -1, shared=False)
            for index, example in enumerate(examples)
        )
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
    agreed = max(start, limit)
    for index in group[1:]:
        agreed = _difference(first, examples[index].input_ids, start, agreed)
    return agreed


def _difference(left: tuple[int, ...], right: tuple[int, ...], start: int, end: int) -> int:
    """The first place from `start` on at which two differ; at most `end`."""
    # Slices are compared in C: halving is faster than walking even where little agrees.
    if left[start:end] == right[start:end]:
        return end
    while end - start > 1:
        middle = (start + end) // 2
        if left[start:middle] == right[start:middle]:
            start = middle
        else:
            end = middle
    return start


def agreements(examples: Sequence[Example]) -> npt.NDArray[np.int32]:
    """How many leading tokens each two of N examples may share, as an (N, N) table.

    Sorted as words in a dictionary, two agree as far as all neighbors between them do.
    """
    beginnings = [example.input_ids[: num_shareable(example)] for example in examples]
    num = len(beginnings)
    order = sorted(range(num), key=beginnings.__getitem__)
    lengths = [len(beginnings[index]) for index in order]
    neighbors = [
        _difference(beginnings[one], beginnings[other], 0, min(lengths[at], lengths[at + 1]))
        for at, (one, other) in enumerate(pairwise(order))
    ]
    # From the diagonal to the right, the least so far.
    table = np.broadcast_to(np.array([0, *neighbors][:num], dtype=np.int32), (num, num)).copy()
    table[np.tri(num, k=-1, dtype=bool)] = np.iinfo(np.int32).max
    np.fill_diagonal(table, lengths)
    table = np.triu(np.minimum.accumulate(table, axis=1))
    found = np.empty_like(table)
    found[np.ix_(order, order)] = np.maximum(table, table.T)
    return found
