"""Scores of written answers against the right ones.

A score is always read beside its *echo*: what giving the question's own word back would
score. chrF of an inflected form against its stem is above 50 with nothing learnt.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ince.errors import InputError

__all__ = ["ChrF", "chrf", "exact_match", "normalize", "restored_word_accuracy"]

# Both apostrophes stand before suffixes of names; which one is a matter of the keyboard.
_APOSTROPHES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'"})


def normalize(text: str) -> str:
    """The text as it is compared: NFC, one kind of apostrophe, single blanks, none outside.

    Letters, their case and their diacritics stay: they are what is asked for.
    """
    return " ".join(unicodedata.normalize("NFC", text).translate(_APOSTROPHES).split())


def exact_match(predicted: str, gold: str) -> bool:
    """Whether the answer is the right one, compared as `normalize` leaves them."""
    return normalize(predicted) == normalize(gold)


@dataclass(frozen=True)
class ChrF:
    """Character n-gram F-score, 0 to 100, of a set of answers.

    Attributes:
        corpus: n-grams counted over all answers together, as papers report it.
        mean: of `per_row`; what an interval over rows belongs to.
        per_row: the score of each answer alone.
    """

    corpus: float
    mean: float
    per_row: tuple[float, ...]


def chrf(predicted: Sequence[str], gold: Sequence[str]) -> ChrF:
    """chrF2 of sacrebleu with its defaults (6-grams of characters, beta 2).

    Source: Popović, 2015, "chrF: character n-gram F-score for automatic MT evaluation".

    Raises:
        InputError: no rows, or not as many answers as right answers.
    """
    from sacrebleu.metrics.chrf import CHRF

    if len(predicted) != len(gold) or not gold:
        raise InputError(
            "chrF needs one right answer for each answer, and at least one",
            got=f"{len(predicted)} answers, {len(gold)} right answers",
        )
    metric = CHRF()
    answers = [normalize(text) for text in predicted]
    references = [normalize(text) for text in gold]
    per_row = tuple(
        float(metric.sentence_score(answer, [reference]).score)
        for answer, reference in zip(answers, references, strict=True)
    )
    return ChrF(
        corpus=float(metric.corpus_score(answers, [references]).score),
        mean=sum(per_row) / len(per_row),
        per_row=per_row,
    )


def restored_word_accuracy(folded: str, gold: str, predicted: str) -> tuple[int, int]:
    """Of the words that lost letters, how many came back right.

    Words are aligned by their place. A word that folding left as it was does not count,
    so that giving the folded text back scores 0; a word that is missing is wrong.

    Args:
        folded: the text with its diacritics taken away.
        gold: the text as it was, with as many words.
        predicted: what the model made of `folded`.

    Returns:
        (num_right, num_lost): words restored, of words that had lost letters.

    Raises:
        InputError: `folded` and `gold` have different numbers of words.
    """
    before, right = normalize(folded).split(), normalize(gold).split()
    if len(before) != len(right):
        raise InputError(
            "the folded text and the right one have different numbers of words",
            got=f"{len(before)} and {len(right)}: {folded!r}, {gold!r}",
        )
    answered = normalize(predicted).split()
    lost = [i for i, (was, word) in enumerate(zip(before, right, strict=True)) if was != word]
    num_right = sum(i < len(answered) and answered[i] == right[i] for i in lost)
    return num_right, len(lost)
