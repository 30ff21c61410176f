"""Noun inflection as questions: which form has this noun in this case and number?

    "kitap" sözcüğünün çoğul bulunma (-de) hâli nedir?   →   kitaplarda

Answers are attested forms, not generated ones. The bare singular is left out, since it is
the question's own word: an echo would score.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ince.data.turkish.orthography import ALPHABET, lower
from ince.data.turkish.treebank import Sentence, Token

__all__ = ["CASES", "NUMBERS", "Inflection", "build_inflections"]

# Case → its name in the question, and how every regular form of it ends.
CASES: dict[str, tuple[str, str]] = {
    "Bare": ("yalın", ""),
    "Acc": ("belirtme (-i)", "[ıiuü]"),
    "Dat": ("yönelme (-e)", "[ae]"),
    "Loc": ("bulunma (-de)", "[dt][ae]"),
    "Abl": ("ayrılma (-den)", "[dt][ae]n"),
    "Gen": ("tamlayan (-in)", "[ıiuü]n"),
    "Ins": ("vasıta (-le)", "l[ae]"),
}
# Number → its name in the question, and its suffix.
NUMBERS: dict[str, tuple[str, str]] = {"A3sg": ("tekil", ""), "A3pl": ("çoğul", "l[ae]r")}

_WORD = re.compile(f"[{ALPHABET}]{{2,}}")
# The treebank names the unmarked case by its role in the sentence; the form is one.
_SAME_CASE = {"Nom": "Bare"}
_EXCLUDED_FEATURES = ("Derivation", "Copula", "Apostrophe")


@dataclass(frozen=True, order=True)
class Inflection:
    """One cell of a noun's paradigm with its attested form."""

    lemma: str
    number: str
    case: str
    form: str

    @property
    def question(self) -> str:
        """The question in Turkish."""
        number, case = NUMBERS[self.number][0], CASES[self.case][0]
        return f'"{self.lemma}" sözcüğünün {number} {case} hâli nedir?'


def _is_plain_noun(token: Token) -> bool:
    features = token.features
    return (
        token.upos == "NOUN"
        and token.xpos == "NN"
        and features.get("Proper") == "False"
        and features.get("Possessive") == "Pnon"
        and not any(name in features for name in _EXCLUDED_FEATURES)
    )


def _attested(sentence: Sentence) -> Iterator[Inflection]:
    joined_before = False
    for index, token in enumerate(sentence.tokens):
        following = sentence.tokens[index + 1] if index + 1 < len(sentence.tokens) else None
        # A group joined to another word-part is a piece of a word, not a form.
        joined_after = not token.space_after and following is not None and following.upos != "PUNCT"
        whole_word = not joined_before and not joined_after
        joined_before = not token.space_after
        number = token.features.get("PersonNumber", "")
        case = token.features.get("Case", "")
        case = _SAME_CASE.get(case, case)
        if not (whole_word and _is_plain_noun(token) and number in NUMBERS and case in CASES):
            continue
        lemma, form = token.lemma, lower(token.form)
        if _WORD.fullmatch(lemma) and _WORD.fullmatch(form):
            yield Inflection(lemma, number, case, form)


def build_inflections(sentences: Iterable[Sentence]) -> tuple[list[Inflection], Counter[str]]:
    """Every unambiguous inflected noun form, sorted, and what was dropped by reason.

    A cell with two attested forms is ambiguous (a misspelling, mostly). A form that does not
    end as its case and number must is a slip of the annotation (``demirde`` as bare).
    """
    cells: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for sentence in sentences:
        for found in _attested(sentence):
            cells[found.lemma, found.number, found.case].add(found.form)
    kept: list[Inflection] = []
    dropped: Counter[str] = Counter()
    for (lemma, number, case), forms in sorted(cells.items()):
        if (number, case) == ("A3sg", "Bare"):
            dropped["bare singular: the answer is the question's word"] += 1
        elif len(forms) > 1:
            dropped["two attested forms"] += 1
        else:
            (form,) = forms
            ending = NUMBERS[number][1] + CASES[case][1]
            if re.search(f"{ending}$", form):
                kept.append(Inflection(lemma, number, case, form))
            else:
                dropped["form without its suffix"] += 1
    return kept, dropped
