import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.tables import read_table
from ince.errors import DataError

PATH = Path("a.csv")
cells = st.text("ab\"',;\t|\nİş ", min_size=1, max_size=8)


@given(
    rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_csv_writes_is_what_is_read(rows, delimiter, end):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
    writer.writerows([("prompt", "completion"), *rows])
    table = read_table(stream.getvalue(), PATH)
    assert table.delimiter == delimiter
    assert [tuple(row.value.values()) for row in table.rows] == rows
    assert table.problems == []


def test_rows_have_the_lines_they_start_on():
    table = read_table('prompt,completion\na,"b\nc"\n\nd,e\n', PATH)
    assert [row.number for row in table.rows] == [2, 5]


def test_rows_of_the_wrong_width_are_problems():
    table = read_table("a,b\n1,2\n1\n1,2,3\n4,5\n", PATH)
    assert [row.number for row in table.rows] == [2, 5]
    assert [(p.number, p.detail) for p in table.problems] == [
        (3, "1 fields, the header has 2"),
        (4, "3 fields, the header has 2"),
    ]


def test_excel_names_its_delimiter_in_the_first_line():
    table = read_table("sep=;\r\na;b\r\n1,5;2\r\n", PATH)
    assert table.rows[0].value == {"a": "1,5", "b": "2"}
    assert table.rows[0].number == 3


def test_one_column_is_a_table():
    assert read_table("text\nBir.\n", PATH).rows[0].value == {"text": "Bir."}


def test_long_fields_are_read_and_the_limit_is_put_back():
    before = csv.field_size_limit()
    table = read_table(f"text\n{'a' * 200_000}\n", PATH)
    assert table.rows[0].value == {"text": "a" * 200_000}
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("text", ['a,b\n1,2\n3,"4\n5,6\n', 'a,b\n1,2\n"3"x,4\n'])
def test_quotes_that_do_not_pair_are_refused_with_their_line(text):
    with pytest.raises(DataError, match="quotes do not pair up") as caught:
        read_table(text, PATH)
    assert caught.value.where == "a.csv, in the row that starts on line 3"


def test_a_column_named_twice_is_refused():
    with pytest.raises(DataError, match="names a column twice"):
        read_table("a,b,a\n1,2,3\n", PATH)
