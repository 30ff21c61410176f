"""CSV with a header line: comma, semicolon, tab or bar, found from the file itself.

Quoted fields may hold the delimiter, quotes and line ends. Turkish Excel writes semicolons,
and sometimes a first line ``sep=;``.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ince.data.rows import FileRow, RowProblem
from ince.errors import DataError

__all__ = ["Table", "read_table"]

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_CHARACTERS = 65_536
_SNIFFED_RECORDS = 50
_EXCEL_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
# The csv module's own limit, 131,072, is too short for a document. This is what a C long holds
# on every platform.
_MAX_FIELD_CHARACTERS = 2**31 - 1


@dataclass
class Table:
    """What a CSV file holds: its delimiter, header, rows, and rows of the wrong width."""

    delimiter: str
    header: list[str]
    rows: list[FileRow] = field(default_factory=list[FileRow])
    problems: list[RowProblem] = field(default_factory=list[RowProblem])


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    # The limit belongs to the whole process: it is put back.
    before = csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _stream(text: str) -> io.StringIO:
    # newline="" leaves the line ends inside quotes as they are.
    return io.StringIO(text, newline="")


def _sniff(text: str) -> str:
    """The delimiter that splits the header, and the records after it most evenly."""
    sample = text[:_SNIFFED_CHARACTERS]
    best, best_score = _DELIMITERS[0], (0, 0)
    for delimiter in _DELIMITERS:
        widths: list[int] = []
        with contextlib.suppress(csv.Error):
            for record in csv.reader(_stream(sample), delimiter=delimiter):
                if record:
                    widths.append(len(record))
                if len(widths) == _SNIFFED_RECORDS:
                    break
        if not widths or widths[0] < 2:
            continue
        score = (widths.count(widths[0]), widths[0])
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _header_of(record: list[str], path: Path, line: int) -> list[str]:
    header = [name.strip() for name in record]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            "the header names a column twice",
            where=f"{path}, line {line}",
            got=", ".join(repr(name) for name in twice),
            do="give each column a name of its own",
        )
    return header


def read_table(text: str, path: Path, *, delimiter: str | None = None) -> Table:
    """Read CSV text; `delimiter` None finds it out.

    FileRow numbers are the lines on which rows start. Empty lines are skipped.

    Raises:
        DataError: quotes that never close or stand inside a field, or a column named twice.
    """
    line = 1
    excel = _EXCEL_LINE.match(text)
    if excel is not None:
        delimiter, text, line = excel[1], text[excel.end() :], 2
    first_line = line
    if delimiter is None:
        delimiter = _sniff(text)
    table = Table(delimiter, [])
    reader = csv.reader(_stream(text), delimiter=delimiter, strict=True)
    with _long_fields():
        try:
            for record in reader:
                start, line = line, first_line + reader.line_num
                if not record:
                    continue
                if not table.header:
                    table.header = _header_of(record, path, start)
                elif len(record) != len(table.header):
                    detail = f"{len(record)} fields, the header has {len(table.header)}"
                    table.problems.append(RowProblem(start, "wrong number of fields", detail))
                else:
                    table.rows.append(FileRow(start, dict(zip(table.header, record, strict=True))))
        except csv.Error as error:
            raise DataError(
                "the table's quotes do not pair up",
                where=f"{path}, in the row that starts on line {line}",
                got=str(error),
                expected='fields that hold quotes, delimiters or line ends in "quotes", '
                'and a quote inside them doubled ("")',
            ) from error
    return table
