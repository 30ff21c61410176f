import json
from collections import Counter

import pytest

from ince.data.turkish import (
    Sentence,
    Token,
    build_fragments,
    build_inflections,
    build_instructions,
    fold,
    lower,
    parse_conllu,
    read_treebanks,
)
from ince.errors import DataError


def noun(form, lemma, number="A3sg", case="Bare", *, space_after=True, **features):
    every = {
        "PersonNumber": number,
        "Possessive": "Pnon",
        "Case": case,
        "Proper": "False",
    } | features
    return Token(form, lemma, "NOUN", "NN", every, space_after)


def sentence(*tokens):
    return Sentence("s", "wiki", " ".join(token.form for token in tokens), tokens)


@pytest.fixture(scope="module")
def treebanks():
    return read_treebanks()


@pytest.fixture(scope="module")
def built(treebanks, tmp_path_factory):
    return build_instructions(treebanks, tmp_path_factory.mktemp("turkish"))


def rows(built, split):
    return [json.loads(line) for line in built.path(split).read_text("utf-8").splitlines()]


def of_task(built, split, task):
    return [
        (row["messages"][0]["content"], row["messages"][1]["content"])
        for row in rows(built, split)
        if row["task"] == task
    ]


def test_a_question_and_its_attested_answer():
    found, _ = build_inflections([sentence(noun("Kitaplarda", "kitap", "A3pl", "Loc"))])
    (row,) = found
    assert row.question == '"kitap" sözcüğünün çoğul bulunma (-de) hâli nedir?'
    assert row.form == "kitaplarda"


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([noun("kitap", "kitap")], "bare singular: the answer is the question's word"),
        (
            [noun("insanı", "insan", case="Acc"), noun("insani", "insan", case="Acc")],
            "two attested forms",
        ),
        ([noun("demirde", "demir", "A3pl", "Loc")], "form without its suffix"),
    ],
)
def test_what_teaches_nothing_or_wrong_is_dropped_and_counted(tokens, reason):
    found, dropped = build_inflections([sentence(*tokens)])
    assert found == []
    assert dropped == Counter({reason: 1})


@pytest.mark.parametrize(
    "tokens",
    [
        [noun("evi", "ev", case="Acc", Possessive="P3sg")],
        [noun("Ankara'yı", "ankara", case="Acc", Proper="True")],
        [noun("evi", "ev", case="Acc", space_after=False), noun("dir", "dir", case="Acc")],
    ],
)
def test_names_possessives_and_parts_of_words_are_no_forms(tokens):
    found, _ = build_inflections([sentence(*tokens)])
    assert all(row.lemma != "ev" and row.lemma != "ankara" for row in found)


def test_fragments_have_three_to_five_words_and_lost_a_letter(treebanks):
    fragments = build_fragments(treebanks, seed=7)
    assert len(fragments) > 5000
    for row in fragments:
        assert 3 <= len(row.fragment.split()) <= 5
        assert row.folded == fold(row.fragment) != row.fragment


def test_equal_seeds_write_equal_bytes(treebanks, tmp_path):
    options = {"num_test": 20, "num_eval": 10, "num_train_inflection": 50}
    first = build_instructions(treebanks, tmp_path / "a", seed=3, **options)
    again = build_instructions(treebanks, tmp_path / "b", seed=3, **options)
    other = build_instructions(treebanks, tmp_path / "c", seed=4, **options)
    assert first.card == again.card
    assert first.card["digests"] != other.card["digests"]


def test_nothing_leaks(built):
    """Lemmas, fragments and asked forms of test and eval are in no training row."""
    lemmas, forms, fragments = {}, set(), {}
    for split in ("train", "eval", "test"):
        inflections = of_task(built, split, "inflection")
        lemmas[split] = {question.split('"')[1] for question, _ in inflections}
        fragments[split] = {answer for _, answer in of_task(built, split, "diacritics")}
        if split != "train":
            forms |= {answer for _, answer in inflections}
    assert not lemmas["train"] & (lemmas["eval"] | lemmas["test"])
    assert not lemmas["eval"] & lemmas["test"]
    assert not fragments["train"] & (fragments["eval"] | fragments["test"])
    trained = "\n".join(fragments["train"])
    assert not any(fragment in trained for fragment in fragments["test"] | fragments["eval"])
    words = {word.strip(".,;:!?\"“”'’%-") for word in lower(trained).split()}
    assert not forms & words


def test_the_card_counts_what_is_there(built):
    assert built.card["rows"]["test"] == {"inflection": 250, "diacritics": 250}
    for split in ("train", "eval", "test"):
        counted = Counter(row["task"] for row in rows(built, split))
        expected = {name: n for name, n in built.card["rows"][split].items() if n}
        assert dict(counted) == expected
    text = (built.folder / "card.md").read_text("utf-8")
    assert "turkish-treebanks" in text
    assert "Apache-2.0" in text


def test_rehearsal_rows_are_mixed_in_and_said(treebanks, tmp_path):
    row = {"task": "english", "messages": [{"role": "user", "content": "a"}]}
    built = build_instructions(treebanks, tmp_path, num_test=5, num_eval=5, rehearsal=[row] * 3)
    assert rows(built, "train").count(row) == 3
    assert row not in rows(built, "test")
    assert "rehearsal**: 3 further rows" in (tmp_path / "card.md").read_text("utf-8")


def test_repeats_come_when_more_are_asked_for_than_there_are(treebanks, tmp_path):
    built = build_instructions(
        treebanks, tmp_path, num_test=5, num_eval=5, num_train_inflection=6000
    )
    asked = of_task(built, "train", "inflection")
    assert len(asked) == 6000
    assert max(Counter(asked).values()) == -(-6000 // len(set(asked)))


def test_too_few_sentences(treebanks, tmp_path):
    with pytest.raises(DataError, match="too few sentences"):
        build_instructions(treebanks[:20], tmp_path)


def test_a_file_that_is_not_conllu_names_its_line(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_text("# text = a\n1\ta\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)ten columns|10 columns.*x.conllu:2|x.conllu:2"):
        list(parse_conllu(path, "wiki"))
    path.write_bytes(b"# text = \xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        list(parse_conllu(path, "wiki"))
