import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.sources import read_rows, read_source
from ince.errors import DataError
from ince.files import sha256_bytes

ROW = {"prompt": "Hangi ağaç? 🌳", "completion": "Çınar\u2028İğde"}


@pytest.fixture
def write(tmp_path):
    def _write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def values(path):
    return [row.value for row in read_rows(path)]


def numbers(path):
    return [row.number for row in read_rows(path)]


LINE = json.dumps(ROW, ensure_ascii=False)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_are_read_whatever_editor_wrote_them(write, encoding, end):
    text = end.join([LINE, "", "  ", LINE, ""])
    path = write("a.jsonl", text.encode(encoding))
    assert values(path) == [ROW, ROW]
    assert numbers(path) == [1, 4]


def test_utf_16_with_big_endian_mark(write):
    assert values(write("a.jsonl", b"\xfe\xff" + LINE.encode("utf-16-be"))) == [ROW]


def test_joined_files_with_a_mark_in_the_middle(write):
    assert values(write("a.jsonl", f"{LINE}\n\ufeff{LINE}")) == [ROW, ROW]


def test_long_lines_are_lines(write):
    row = {"text": "uzun " * 400_000}
    assert values(write("a.ndjson", json.dumps(row))) == [row]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([ROW, ROW], [ROW, ROW]),
        ({"data": [ROW]}, [ROW]),
        ({"version": 1, "rows": [ROW]}, [ROW]),
        (ROW, [ROW]),
    ],
)
def test_json_documents_hold_rows(write, content, expected):
    path = write("a.json", json.dumps(content, indent=1))
    assert values(path) == expected
    assert numbers(path) == list(range(1, len(expected) + 1))
    assert read_source(path).unit == "row"


def test_json_lines_under_the_name_json(write):
    source = read_source(write("a.json", f"{LINE}\n{LINE}\n"))
    assert (source.kind, source.unit, source.num_rows) == ("jsonl", "line", 2)


def test_parquet_with_lists_of_structs(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [messages, messages], "id": [1, 2]}), path)
    assert values(path) == [{"messages": messages, "id": 1}, {"messages": messages, "id": 2}]


def test_text_is_cut_at_blank_lines(write):
    path = write("a.txt", "\nBir.\nİki.\r\n \n\nÜç.")
    assert values(path) == [{"text": "Bir.\nİki."}, {"text": "Üç."}]
    assert numbers(path) == [2, 6]


def test_a_source_knows_its_file(write):
    data = f"{LINE}\n".encode()
    source = read_source(str(write("a.jsonl", data)))
    assert source.digest == sha256_bytes(data)
    assert source.num_bytes == len(data)
    assert source.encoding == "utf-8"
    assert source.place(3) == "a.jsonl, line 3"


def test_csv_is_read_by_its_header(write):
    path = write("a.csv", "soru;cevap\r\nBir, iki;üç\r\n")
    assert values(path) == [{"soru": "Bir, iki", "cevap": "üç"}]
    assert read_source(path).delimiter == ";"


def test_tsv_is_cut_at_tabs(write):
    assert values(write("a.tsv", "prompt\tcompletion\na,b\tc;d\n")) == [
        {"prompt": "a,b", "completion": "c;d"}
    ]


def test_bad_lines_are_kept_beside_the_good(write):
    path = write("a.jsonl", f'{LINE}\n{{"a": 1\n[1]\n{LINE}\n{{"a": 1, "a": 2}}\n{{"a": NaN}}\n')
    source = read_source(path)
    assert [row.number for row in source.rows] == [1, 4]
    assert [(p.number, p.reason) for p in source.problems] == [
        (2, "not valid JSON"),
        (3, "not a JSON object"),
        (5, "not valid JSON"),
        (6, "not valid JSON"),
    ]
    assert source.num_rows == 6
    with pytest.raises(DataError, match=r"4 of 6 rows cannot be used") as caught:
        read_rows(path)
    message = str(caught.value)
    assert "line 2: not valid JSON" in message
    assert "'a' occurs twice" in message
    assert "NaN is not JSON" in message


@given(rows=st.lists(st.dictionaries(st.text(), st.text(), min_size=1), min_size=1, max_size=5))
def test_what_json_writes_is_what_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    assert values(path) == rows
