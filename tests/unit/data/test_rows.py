from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ince.data.rows import RowProblem, bad_rows_error, count_reasons, printable
from ince.errors import DataError


@given(text=st.text())
def test_nothing_printable_is_unprintable(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 161


def test_problems_come_in_the_order_of_their_rows():
    problems = [RowProblem(7, "empty"), RowProblem(2, "not text", "int: 3")]
    error = bad_rows_error(Path("a.csv"), problems, num_rows=9, unit="line")
    assert isinstance(error, DataError)
    assert error.what.splitlines() == [
        "2 of 9 rows cannot be used:",
        "  line 2: not text (int: 3)",
        "  line 7: empty",
    ]


def test_reasons_are_counted_the_most_frequent_first():
    problems = [RowProblem(1, "a"), RowProblem(2, "b", "x"), RowProblem(3, "b", "y")]
    assert list(count_reasons(problems).items()) == [("b", 2), ("a", 1)]
    error = DataError("empty", got="message 2")
    assert RowProblem.from_error(3, error) == RowProblem(3, "empty", "message 2")
