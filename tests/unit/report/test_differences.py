from hypothesis import given
from hypothesis import strategies as st

from ince.report.differences import compare_answers

ANY = st.text(alphabet="aâ bcçıiİ.I\n", max_size=30)


def marked(pieces):
    signs = {"same": "{}", "gained": "+{}+", "wrong": "-{}-"}
    return "".join(signs[piece.kind].format(piece.text) for piece in pieces)


@given(ANY, ANY, ANY)
def test_pieces_join_to_the_answer(expected, base, tuned):
    for answer, pieces in zip((base, tuned), compare_answers(expected, base, tuned), strict=True):
        assert "".join(piece.text for piece in pieces) == answer


@given(ANY, ANY)
def test_a_right_answer_has_nothing_wrong(expected, base):
    assert all(piece.kind != "wrong" for piece in compare_answers(expected, base, expected)[1])


def test_letters_that_tuning_restored_are_gained():
    base, tuned = compare_answers("kuş uçuşu", "kus ucusu", "kuş uçusu")
    assert marked(base) == "ku-s- u-c-u-s-u"
    assert marked(tuned) == "ku+ş+ u+ç+u-s-u"


def test_a_missing_ending_is_gained():
    base, tuned = compare_answers("denizlerden", "denizden", "denizlerden")
    assert marked(base) == "denizden"
    assert marked(tuned) == "deniz+ler+den"


def test_unrelated_sentences_get_no_marks():
    base, tuned = compare_answers("kitaplarda", "The plural of it.", "kitaplarda")
    assert marked(base) == "The plural of it."
    assert marked(tuned) == "kitaplarda"


def test_long_texts_are_not_aligned():
    text = "ab " * 5_000
    assert marked(compare_answers(text, text + "x", "y")[0]) == text + "x"
