"""Where an answer agrees with what was expected, and where tuning made it agree.

Words are aligned first and letters only inside words that resemble each other: letters of
two unrelated sentences always match somewhere, and marking those would say nothing.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

__all__ = ["Piece", "compare_answers"]

Kind = Literal["same", "gained", "wrong"]

# Alignment is quadratic; longer texts are shown without marks.
_MAX_CHARACTERS = 1_200
_MIN_RESEMBLANCE = 0.5


@dataclass(frozen=True)
class Piece:
    """A run of characters of an answer, and how it stands to the expected text."""

    text: str
    kind: Kind


def _words(text: str) -> list[tuple[int, str]]:
    return [(match.start(), match[0]) for match in re.finditer(r"\s+|\w+|[^\w\s]", text)]


def _folded(text: str) -> str:
    """Letters without their marks, one for one: words that differ in marks alone stay aligned."""
    bare = (unicodedata.normalize("NFD", letter)[0] for letter in text)
    return "".join("i" if letter in "ıIİ" else letter.lower()[0] for letter in bare)


def _resembling(expected: str, answer: str) -> Iterator[tuple[int, int, int]]:
    """Equal stretches inside a stretch of differing words, when these resemble each other."""
    if _folded(expected) == _folded(answer):
        for i, (theirs, ours) in enumerate(zip(expected, answer, strict=True)):
            if theirs == ours:
                yield i, i, 1
        return
    matcher = SequenceMatcher(None, expected, answer, autojunk=False)
    if matcher.ratio() >= _MIN_RESEMBLANCE:
        yield from matcher.get_matching_blocks()


def _matches(expected: str, answer: str) -> dict[int, int]:
    """Position in `answer` → position in `expected` of the characters that agree."""
    theirs, ours = _words(expected), _words(answer)
    matcher = SequenceMatcher(None, [w for _, w in theirs], [w for _, w in ours], autojunk=False)
    found: dict[int, int] = {}
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            for (start, word), (own_start, _) in zip(theirs[i1:i2], ours[j1:j2], strict=True):
                found.update((own_start + k, start + k) for k in range(len(word)))
        elif tag == "replace":
            start, own_start = theirs[i1][0], ours[j1][0]
            end = theirs[i2 - 1][0] + len(theirs[i2 - 1][1])
            own_end = ours[j2 - 1][0] + len(ours[j2 - 1][1])
            for at, own_at, size in _resembling(expected[start:end], answer[own_start:own_end]):
                found.update((own_start + own_at + k, start + at + k) for k in range(size))
    # Only spaces or full stops in common is nothing in common.
    if not any(answer[i].isalnum() for i in found):
        return {}
    return found


def _pieces(answer: str, kinds: list[Kind]) -> list[Piece]:
    pieces: list[Piece] = []
    for _, run in groupby(range(len(answer)), key=kinds.__getitem__):
        places = list(run)
        pieces.append(Piece(answer[places[0] : places[-1] + 1], kinds[places[0]]))
    return pieces


def compare_answers(expected: str, base: str, tuned: str) -> tuple[list[Piece], list[Piece]]:
    """`base` and `tuned` in pieces.

    ``wrong`` differs from `expected`; ``gained`` is in `tuned`, agrees with `expected`, and
    is what `base` had not. An answer with nothing in common is one plain piece.
    """
    if not expected or max(len(expected), len(base), len(tuned)) > _MAX_CHARACTERS:
        return [Piece(base, "same")] if base else [], [Piece(tuned, "same")] if tuned else []
    from_base, from_tuned = _matches(expected, base), _matches(expected, tuned)
    had = set(from_base.values())

    def base_kind(i: int) -> Kind:
        return "same" if i in from_base or not from_base else "wrong"

    def tuned_kind(i: int) -> Kind:
        if not from_tuned:
            return "same"
        if i not in from_tuned:
            return "wrong"
        # Gains stand out only against something the base got right.
        return "gained" if had and from_tuned[i] not in had else "same"

    return (
        _pieces(base, [base_kind(i) for i in range(len(base))]),
        _pieces(tuned, [tuned_kind(i) for i in range(len(tuned))]),
    )
