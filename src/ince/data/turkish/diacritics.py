"""Restoring diacritics: a fragment typed in ASCII, to be made Turkish again.

    Turkce harfleri duzelt: goc eden bu   →   göç eden bu

Fragments have three to five words: a small model that copies well over that length
fails on whole sentences. The question is folded too, as one would type it.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ince.data.turkish.orthography import fold
from ince.data.turkish.treebank import Sentence

__all__ = ["PROMPT", "DiacriticsRow", "build_fragments"]

PROMPT = "Turkce harfleri duzelt:"
_NUM_WORDS = (3, 4, 5)
# Words with plain punctuation; brackets, links and formulas teach nothing here.
_FRAGMENT = re.compile(r"[\w'’.,;:!?\"“”%-]+(?: [\w'’.,;:!?\"“”%-]+)*")


@dataclass(frozen=True)
class DiacriticsRow:
    """One fragment: `folded` is asked, `fragment` is the answer."""

    folded: str
    fragment: str

    @property
    def question(self) -> str:
        """The question, in ASCII."""
        return f"{PROMPT} {self.folded}"


def _pieces(words: list[str], chooser: random.Random) -> Iterator[str]:
    start = 0
    while len(words) - start >= min(_NUM_WORDS):
        size = chooser.choice(_NUM_WORDS)
        piece = words[start : start + size]
        start += size
        if len(piece) >= min(_NUM_WORDS):
            yield " ".join(piece)


def build_fragments(sentences: Iterable[Sentence], *, seed: int) -> list[DiacriticsRow]:
    """Consecutive fragments of each sentence that lost at least one letter, each once.

    Where a sentence is cut depends on `seed` and on its own text alone, not on its
    neighbours, so that adding a sentence changes no other row.
    """
    rows: dict[str, DiacriticsRow] = {}
    for sentence in sentences:
        chooser = random.Random(f"{seed}:{sentence.text}")
        for fragment in _pieces(sentence.text.split(), chooser):
            folded = fold(fragment)
            if folded != fragment and _FRAGMENT.fullmatch(fragment):
                rows.setdefault(fragment, DiacriticsRow(folded, fragment))
    return list(rows.values())
