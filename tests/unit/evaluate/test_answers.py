"""Scores of answers, and what each of them must not be fooled by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import corpus_chrf, sentence_chrf

from ince.errors import InputError
from ince.evaluate import chrf, exact_match, normalize, restored_word_accuracy


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        ("kitaplarda", "kitaplarda", True),
        (" kitaplarda\n", "kitaplarda", True),
        ("g\u0306u\u0308", "ğü", True),  # composed and decomposed
        ("İstanbul’a", "İstanbul'a", True),
        ("Kitaplarda", "kitaplarda", False),
        ("kitaplarda.", "kitaplarda", False),
        ("hala", "hâlâ", False),
        ("kagit", "kağıt", False),
        ("", "x", False),
    ],
)
def test_exact_match(predicted: str, gold: str, right: bool) -> None:
    assert exact_match(predicted, gold) is right


@given(st.text(max_size=40))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_chrf_is_sacrebleus() -> None:
    predicted, gold = ["kitabın", "evler", "su"], ["kitapların", "evlerde", "su"]
    score = chrf(predicted, gold)
    assert score.corpus == pytest.approx(corpus_chrf(predicted, [gold]).score)
    alone = [sentence_chrf(p, [g]).score for p, g in zip(predicted, gold, strict=True)]
    assert score.per_row == pytest.approx(alone)
    assert score.mean == pytest.approx(sum(alone) / 3)
    assert score.per_row[2] == pytest.approx(100)


def test_chrf_of_an_empty_answer_is_zero() -> None:
    assert chrf([""], ["söz"]).corpus == 0


@pytest.mark.parametrize("rows", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_chrf_needs_pairs(rows: tuple[list[str], list[str]]) -> None:
    with pytest.raises(InputError, match="chrF"):
        chrf(*rows)


GOLD = "Şimdi çok geç oldu"
FOLDED = "Simdi cok gec oldu"


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (GOLD, (3, 3)),
        (FOLDED, (0, 3)),  # the echo
        ("Şimdi cok geç oldu", (2, 3)),
        ("Şimdi çok", (2, 3)),
        ("şimdi çok geç oldu", (2, 3)),  # case counts
        ("Evet Şimdi çok geç oldu", (0, 3)),  # a word more moves all others
        ("", (0, 3)),
        (f"{GOLD} mu?", (3, 3)),
    ],
)
def test_restored_words(predicted: str, expected: tuple[int, int]) -> None:
    assert restored_word_accuracy(FOLDED, GOLD, predicted) == expected


def test_words_without_a_loss_do_not_count() -> None:
    assert restored_word_accuracy("bir iki", "bir iki", "bir iki") == (0, 0)


def test_words_must_correspond() -> None:
    with pytest.raises(InputError, match="numbers of words"):
        restored_word_accuracy("bir", "bir iki", "bir")


words = st.lists(st.text("abcğüşöçı", min_size=1, max_size=6), min_size=1, max_size=6)


@given(words)
def test_right_answer_restores_all_and_the_echo_none(gold: list[str]) -> None:
    text = " ".join(gold)
    folded = text.translate(str.maketrans("ğüşöçı", "gusoci"))
    num_lost = sum(a != b for a, b in zip(text.split(), folded.split(), strict=True))
    assert restored_word_accuracy(folded, text, text) == (num_lost, num_lost)
    assert restored_word_accuracy(folded, text, folded) == (0, num_lost)
