"""Data files as they arrive from the world: each gives one clear error, and no traceback."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ince.data.dataset import convert_source
from ince.data.rows import FileRow
from ince.data.shapes import SHAPES
from ince.data.sources import SourceFile, read_rows, read_source
from ince.errors import DataError, InputError

LINE = '{"prompt": "a", "completion": "b"}'


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.where
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("empty.jsonl", b"", "empty"),
        ("blank.jsonl", b"\xef\xbb\xbf\r\n \n", "empty"),
        ("empty.json", b"[]", "no rows"),
        ("empty.csv", b"prompt,completion\n", "no rows"),
        ("empty.parquet", b"", "empty"),
        ("blank16.jsonl", "\ufeff\n\n".encode("utf-16-le"), "no rows"),
        ("open.jsonl", b'{"prompt": "a", "comp', "line 1: not valid JSON"),
        ("twins.jsonl", b'{"a": 1, "a": 2}', "'a' occurs twice"),
        ("inner_twins.jsonl", b'{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
        ("nan.jsonl", b'{"a": NaN}', "NaN is not JSON"),
        ("infinity.jsonl", b'{"a": -Infinity}', "-Infinity is not JSON"),
        ("digits.jsonl", b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        ("deep.jsonl", b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        ("quotes.jsonl", b"{'a': 1}", "not valid JSON"),
        ("list.jsonl", b"[1, 2]", "not a JSON object"),
        ("cp1254.jsonl", '{"a": "þiþli"}'.encode("latin-1"), "not UTF-8"),
        ("pretty.jsonl", b'[\n {"a": 1}\n]', "rename it to pretty.json"),
        ("pretty.json", b'[\n {"a": 1,}\n]', "line 2, column"),
        ("number.json", b"3", "no list of rows"),
        ("numbers.json", b"[1, 2]", "row 1: not a JSON object"),
        ("twins.json", b'[{"a": 1, "a": 2}]', "'a' occurs twice"),
        ("cp1254.json", '[{"a": "þiþli"}]'.encode("latin-1"), "1 lines are not UTF-8"),
        ("cp1254.csv", "a,b\nþiþli,x\n".encode("latin-1"), "WINDOWS-1254"),
        ("cp1254.txt", "þiþli".encode("latin-1"), "line 1 (byte 0xfe)"),
        ("quote.csv", b'a,b\n1,"2\n', "quotes do not pair up"),
        ("ragged.csv", b"a,b\n1,2,3\n", "3 fields, the header has 2"),
        ("twins.csv", b"a,a\n1,2\n", "names a column twice"),
        ("picture.csv", b"\x89PNG\x00\x00\x01\x02\x03\x04\x05", "binary file"),
        ("cut.csv", b"\xff\xfea", "does not stay so"),
        ("junk.parquet", b"PAR1 this is not one", "not readable as Parquet"),
        ("text.parquet", b"hello", "not readable as Parquet"),
        ("named_wrong.jsonl", b"PAR1....PAR1", "rename it to .parquet"),
        ("packed.jsonl", gzip.compress(LINE.encode(), mtime=0), "compressed"),
        ("packed.jsonl.gz", gzip.compress(LINE.encode(), mtime=0), "compressed"),
        ("book.xlsx", b"PK\x03\x04....", "compressed"),
        ("data.yaml", b"a: 1", "not a kind of data file"),
        ("data", LINE.encode(), "a name without a suffix"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path, name, data, expected):
    path = tmp_path / name
    path.write_bytes(data)
    message = refusal(path)
    assert expected in message
    assert name in message


def test_a_cut_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 1000}), path)
    data = path.read_bytes()
    for size in (4, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert "not readable as Parquet" in refusal(path)


def test_a_missing_file_suggests_its_neighbor(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINE)
    assert "did you mean" in refusal(tmp_path / "trian.jsonl")
    assert "train.jsonl" in refusal(tmp_path / "something_else.csv")
    assert "no folder" in refusal(tmp_path / "nowhere" / "train.jsonl")


def test_a_folder_suggests_its_files(tmp_path):
    assert "a folder" in refusal(tmp_path)
    (tmp_path / "train.jsonl").write_text(LINE)
    assert "train.jsonl" in refusal(tmp_path)


def test_what_is_not_a_file(tmp_path):
    assert "not a regular file" in refusal(os.devnull)
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "no such data file" in refusal(tmp_path / "a.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    assert "loop.jsonl" in refusal(tmp_path / "loop.jsonl")
    (tmp_path / "b.jsonl").write_text(LINE)
    assert "c.jsonl" in refusal(tmp_path / "b.jsonl" / "c.jsonl")


def test_names_that_no_file_can_have(tmp_path):
    assert refusal(tmp_path / ("a" * 300 + ".jsonl"))
    assert refusal(tmp_path / "a\0b.jsonl")


def test_control_characters_of_a_file_are_spelled_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"\x1b[2J": 1}) + "\n" + '{"\x1b[2J": 1, "b"}')
    assert "\x1b" not in refusal(path)
    with pytest.raises(DataError) as caught:
        convert_source(read_source(path))
    assert "\x1b" not in str(caught.value)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.text('{}[]":,;\n\r\tabİ1\ud800', max_size=60).map(
            lambda text: text.encode("utf-8", errors="surrogatepass")
        ),
        st.text('"a,;\n', max_size=30).map(lambda text: text.encode("utf-16")),
    ),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"]),
)
def test_no_bytes_raise_anything_but_an_input_error(tmp_path, data, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    try:
        convert_source(read_source(path))
    except InputError as error:
        str(error).encode()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type", "tool_calls"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
columns = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "instruction", "output", "text", "system"]
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(columns, json_values, max_size=4), min_size=1, max_size=3),
    shape=st.sampled_from(["auto", *SHAPES]),
)
def test_no_row_raises_anything_but_an_input_error(rows, shape):
    source = SourceFile(
        path=Path("a.jsonl"),
        kind="jsonl",
        unit="line",
        rows=tuple(FileRow(number, value) for number, value in enumerate(rows, start=1)),
        problems=(),
        digest="",
        num_bytes=0,
    )
    try:
        converted = convert_source(source, shape)
    except InputError as error:
        str(error).encode()
        return
    assert len(converted.items) + len(converted.problems) == len(rows)
