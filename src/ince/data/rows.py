"""Rows of a data file, and how the bad ones among them are reported: all together.

A person who repairs a file wants every mistake at once, with the line it stands on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ince.errors import DataError, InputError

__all__ = ["FileRow", "JsonObject", "RowProblem", "bad_rows_error", "count_reasons", "printable"]

JsonObject = dict[str, object]

_MAX_PROBLEMS_SHOWN = 10
_MAX_DETAIL_CHARACTERS = 160


@dataclass(frozen=True)
class FileRow:
    """One row as it was read.

    Attributes:
        number: the line it starts on (lines count from 1), or its place among the rows
            where a format has no lines.
        value: its columns or keys.
    """

    number: int
    value: JsonObject


@dataclass(frozen=True)
class RowProblem:
    """Why one row cannot be used.

    Attributes:
        number: as in `FileRow`.
        reason: the kind of mistake, alike for all rows that share it.
        detail: what is particular to this row.
    """

    number: int
    reason: str
    detail: str | None = None

    @classmethod
    def from_error(cls, number: int, error: InputError) -> "RowProblem":
        """The problem that `error` describes."""
        return cls(number, error.what, error.got or error.expected)

    def __str__(self) -> str:
        return f"{self.reason} ({printable(self.detail)})" if self.detail else self.reason


def printable(text: str) -> str:
    """`text` on one line, cut, and with no control characters for a terminal to obey."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))
    if len(shown) <= _MAX_DETAIL_CHARACTERS:
        return shown
    return shown[:_MAX_DETAIL_CHARACTERS] + "…"


def count_reasons(problems: Iterable[RowProblem]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    return dict(Counter(problem.reason for problem in problems).most_common())


def bad_rows_error(
    path: Path,
    problems: Sequence[RowProblem],
    *,
    num_rows: int,
    unit: str,
    error_class: type[InputError] = DataError,
    do: str | None = None,
) -> InputError:
    """One error for all bad rows of a file: the first ten in order, and how many there are.

    Args:
        path: the file.
        problems: at least one.
        num_rows: all rows of the file, good and bad.
        unit: what `RowProblem.number` counts: ``line`` or ``row``.
        error_class: class of the result.
        do: what the user can do about it.
    """
    ordered = sorted(problems, key=lambda problem: problem.number)
    noun = "row" if num_rows == 1 else "rows"
    lines = [f"{len(ordered)} of {num_rows} {noun} cannot be used:"]
    lines += [f"  {unit} {p.number}: {p}" for p in ordered[:_MAX_PROBLEMS_SHOWN]]
    if len(ordered) > _MAX_PROBLEMS_SHOWN:
        lines.append(f"  … and {len(ordered) - _MAX_PROBLEMS_SHOWN} more")
    return error_class(
        "\n".join(lines),
        where=path,
        do=do or "mend these rows, or leave them out with on_bad_row: drop",
    )
