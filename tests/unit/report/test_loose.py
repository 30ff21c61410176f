import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.report.loose import number, shown, shown_value, text, whole

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)


@pytest.mark.parametrize("value", [None, True, "3", "NaN", math.nan, math.inf, 10**400, [], {}])
def test_what_is_no_finite_number_is_none(value):
    assert number(value) is None
    assert whole(value) is None


def test_numbers_pass():
    assert number(3) == 3.0
    assert whole(3.0) == 3
    assert whole(3.5) is None


@given(ANY_TEXT)
def test_shown_text_has_no_invisible_character_and_is_encodable(value):
    found = shown(value)
    found.encode("utf-8")
    assert not [c for c in found if ord(c) < 32 and c not in "\n\t"]
    assert not set(found) & set("\u202e\u202d\u2066\u200b\x7f\x9b\x00")


def test_long_text_is_cut_and_says_so():
    found = shown("x" * 10_000, limit=50)
    assert found == "x" * 50 + "… (9,950 characters more)"


def test_control_and_direction_characters_are_made_visible():
    assert shown("a\x00b\x1b[31m\u202ec") == "a␀b␛[31m⟨U+202E⟩c"


def test_blank_or_other_than_text_is_none():
    assert text("  \n") is None
    assert text(3) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        (True, "true"),
        (2e-4, "0.0002"),
        (1e-5, "1e-05"),
        (math.nan, "not a number"),
        ([1, "a", None], "1, a, none"),
        ([], "none"),
        ({"type": "nf4", "size": 64}, "type: nf4, size: 64"),
        pytest.param(10**9999, "a very large number", id="large"),
    ],
)
def test_values_read_as_people_write_them(value, expected):
    assert shown_value(value) == expected
