from hypothesis import given
from hypothesis import strategies as st

from ince.data.turkish import fold, lower
from ince.data.turkish.orthography import ALPHABET


def test_the_two_letters_i():
    assert lower("IĞDIR İSTANBUL") == "ığdır istanbul"
    assert len(lower("İ")) == 1


def test_folding_by_hand():
    assert fold("Çağdaş şöför İzmir'de ılık; hâlâ.") == "Cagdas sofor Izmir'de ilik; hala."


@given(st.text(alphabet=ALPHABET + ALPHABET.upper() + " '."))
def test_folding_keeps_length_and_gives_ascii(text):
    folded = fold(text)
    assert len(folded) == len(text)
    assert folded.isascii()
    assert fold(folded) == folded
