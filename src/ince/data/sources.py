"""Data files to rows: JSONL, JSON, CSV, TSV, Parquet and plain text.

A file is read whole: data for an adapter is megabytes, and its digest is taken from the very
bytes that were parsed. What cannot be parsed is kept beside the rows as problems, so that one
pass names every broken line.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ince.data.decoding import DecodedText, decode_text, not_utf8_error, split_lines
from ince.data.rows import FileRow, JsonObject, RowProblem, bad_rows_error
from ince.data.tables import read_table
from ince.errors import DataError
from ince.files import sha256_bytes

__all__ = ["SourceFile", "read_rows", "read_source"]

_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
_COMPRESSED_SUFFIXES = {".gz", ".zip", ".bz2", ".xz", ".zst"}
# Where a JSON object keeps its list of rows.
_LIST_KEYS = ("data", "rows", "examples", "train")


@dataclass(frozen=True)
class SourceFile:
    """A data file, read.

    Attributes:
        path: the file.
        kind: ``jsonl``, ``json``, ``csv``, ``tsv``, ``parquet`` or ``text``.
        unit: what row numbers count: ``line`` or ``row``.
        rows: those that could be parsed, in order.
        problems: those that could not.
        digest: hex SHA-256 of the file.
        num_bytes: its size.
        encoding: of a text file.
        delimiter: of a table.
    """

    path: Path
    kind: str
    unit: str
    rows: tuple[FileRow, ...]
    problems: tuple[RowProblem, ...]
    digest: str
    num_bytes: int
    encoding: str | None = None
    delimiter: str | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the file, readable or not."""
        return len(self.rows) + len(self.problems)

    def place(self, number: int) -> str:
        """Where row `number` is, in words: ``train.jsonl, line 3``."""
        return f"{self.path.name}, {self.unit} {number}"


@dataclass(frozen=True)
class _Parsed:
    rows: list[FileRow]
    problems: list[RowProblem]
    kind: str
    unit: str
    encoding: str | None = None
    delimiter: str | None = None

    @property
    def num_rows(self) -> int:
        return len(self.rows) + len(self.problems)


def read_rows(path: str | Path) -> list[FileRow]:
    """Rows of a data file, all of which must be readable.

    Raises:
        DataError: no such file, a kind that is not read, or rows that cannot be parsed.
    """
    source = read_source(path)
    if source.problems:
        raise bad_rows_error(
            source.path, source.problems, num_rows=source.num_rows, unit=source.unit
        )
    return list(source.rows)


def read_source(path: str | Path) -> SourceFile:
    """Read a data file; rows that cannot be parsed are listed in its `problems`.

    Raises:
        DataError: no such file, not a data file, empty, or broken as a whole.
    """
    path = Path(path).expanduser()
    data = _read_bytes(path)
    kind = _kind_of(path, data)
    if not data.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError("the data file is empty", where=path, do="write at least one row into it")
    parsed = _PARSERS[kind](data, path)
    if parsed.num_rows == 0:
        raise DataError(
            "the data file has no rows", where=path, do="write at least one row into it"
        )
    return SourceFile(
        path=path,
        kind=parsed.kind,
        unit=parsed.unit,
        rows=tuple(parsed.rows),
        problems=tuple(parsed.problems),
        digest=sha256_bytes(data),
        num_bytes=len(data),
        encoding=parsed.encoding,
        delimiter=parsed.delimiter,
    )


# ------------------------------------------------------------------------------ the file itself


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _KINDS)
            raise DataError(
                "this is a folder, not a data file",
                where=path,
                do=f"name one of the files in it: {', '.join(inside[:5])}"
                if inside
                else "name a data file",
            )
        if path.exists() and not path.is_file():
            raise DataError("not a regular file", where=path, do="write the data into a file first")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError("the data file cannot be read", where=path, got=got) from error


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(
            "no such data file", where=path, got=f"there is no folder {str(folder)!r} either"
        )
    siblings = [p.name for p in folder.iterdir() if p.suffix.lower() in _KINDS]
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    hint = f"did you mean {str(folder / near[0])!r}?" if near else None
    if hint is None and siblings:
        hint = f"data files there: {', '.join(sorted(siblings)[:5])}"
    return DataError("no such data file", where=path, do=hint or "check the path")


def _kind_of(path: Path, data: bytes) -> str:
    suffix = path.suffix.lower()
    packer = next((name for mark, name in _COMPRESSED.items() if data.startswith(mark)), None)
    if packer is not None or suffix in _COMPRESSED_SUFFIXES:
        raise DataError(
            "compressed data files are not read",
            where=path,
            got=packer or suffix,
            do="unpack the file first",
        )
    if suffix not in _KINDS:
        raise DataError(
            "not a kind of data file that can be read",
            where=path,
            got=suffix or "a name without a suffix",
            expected=", ".join(_KINDS),
            do="rename the file after what it holds, or convert it",
        )
    if data.startswith(b"PAR1") and suffix != ".parquet":
        raise DataError("this is a Parquet file", where=path, do="rename it to .parquet")
    return _KINDS[suffix]


# ----------------------------------------------------------------------------------------- JSON


def _no_twins(pairs: list[tuple[str, object]]) -> JsonObject:
    value: JsonObject = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        value[key] = item
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_json(text: str) -> object:
    """JSON without its usual leniencies; every mistake is a ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _json_problem(error: ValueError, *, with_line: bool) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    place = f"line {error.lineno}, column {error.colno}" if with_line else f"column {error.colno}"
    return f"{error.msg} at {place}"


def _json_lines(decoded: DecodedText) -> _Parsed:
    rows: list[FileRow] = []
    problems: list[RowProblem] = []
    stray = dict(decoded.bad_lines)
    for number, line in enumerate(split_lines(decoded.text), start=1):
        # Files that were joined carry a byte order mark in their middle.
        line = line.strip(" \t\r\ufeff")
        if not line:
            continue
        if number in stray:
            problems.append(RowProblem(number, "not UTF-8", f"byte 0x{stray[number]:02x}"))
            continue
        try:
            value = _parse_json(line)
        except ValueError as error:
            detail = _json_problem(error, with_line=False)
            problems.append(RowProblem(number, "not valid JSON", detail))
            continue
        if isinstance(value, dict):
            rows.append(FileRow(number, value))
        else:
            problems.append(RowProblem(number, "not a JSON object", type(value).__name__))
    return _Parsed(rows, problems, "jsonl", "line", decoded.encoding)


def _read_jsonl(data: bytes, path: Path) -> _Parsed:
    decoded = decode_text(data, path)
    parsed = _json_lines(decoded)
    # Broken lines may be those of one pretty-printed document.
    if parsed.problems and parsed.num_rows > 1 and not decoded.bad_lines:
        try:
            _parse_json(decoded.text)
        except ValueError:
            return parsed
        raise DataError(
            "this is one JSON document over many lines, not one object on each line",
            where=path,
            do=f"rename it to {path.stem}.json",
        )
    return parsed


def _read_json(data: bytes, path: Path) -> _Parsed:
    decoded = decode_text(data, path)
    if decoded.bad_lines:
        raise not_utf8_error(decoded, path)
    try:
        value = _parse_json(decoded.text)
    except ValueError as error:
        # Many data sets keep JSON lines under the name .json.
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _json_lines(decoded)
        raise DataError(
            "the file is not valid JSON",
            where=path,
            got=_json_problem(error, with_line=True),
            do="mend the file; for one object on each line name it .jsonl",
        ) from error
    if isinstance(value, dict):
        lists = [key for key in _LIST_KEYS if isinstance(value.get(key), list)]
        value = value[lists[0]] if lists else [value]
    if not isinstance(value, list):
        raise DataError(
            "the file holds no list of rows",
            where=path,
            got=type(value).__name__,
            expected='[{...}, {...}] or {"data": [{...}, {...}]}',
        )
    rows: list[FileRow] = []
    problems: list[RowProblem] = []
    for number, item in enumerate(value, start=1):
        if isinstance(item, dict):
            rows.append(FileRow(number, item))
        else:
            problems.append(RowProblem(number, "not a JSON object", type(item).__name__))
    return _Parsed(rows, problems, "json", "row", decoded.encoding)


# --------------------------------------------------------------------- tables, Parquet and text


def _read_csv(data: bytes, path: Path) -> _Parsed:
    decoded = decode_text(data, path)
    if decoded.bad_lines:
        raise not_utf8_error(decoded, path)
    kind = _KINDS[path.suffix.lower()]
    table = read_table(decoded.text, path, delimiter="\t" if kind == "tsv" else None)
    return _Parsed(table.rows, table.problems, kind, "line", decoded.encoding, table.delimiter)


def _read_parquet(data: bytes, path: Path) -> _Parsed:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        values = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            "not readable as Parquet",
            where=path,
            got=str(error),
            do="write the file again; it may be cut off",
        ) from error
    rows = [FileRow(number, dict(value)) for number, value in enumerate(values, start=1)]
    return _Parsed(rows, [], "parquet", "row")


def _read_text(data: bytes, path: Path) -> _Parsed:
    """Documents with blank lines between them; a row starts on its first line."""
    decoded = decode_text(data, path)
    if decoded.bad_lines:
        raise not_utf8_error(decoded, path)
    rows: list[FileRow] = []
    block: list[str] = []
    # The extra blank line ends the last document.
    for number, line in enumerate([*split_lines(decoded.text), ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            rows.append(FileRow(number - len(block), {"text": "\n".join(block)}))
            block = []
    return _Parsed(rows, [], "text", "line", decoded.encoding)


_PARSERS: dict[str, Callable[[bytes, Path], _Parsed]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_csv,
    "parquet": _read_parquet,
    "text": _read_text,
}
