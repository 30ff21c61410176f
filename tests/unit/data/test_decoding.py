from pathlib import Path

import pytest

from ince.data.decoding import decode_text, not_utf8_error, split_lines
from ince.errors import DataError

PATH = Path("a.txt")


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("Çınar".encode(), "utf-8"),
        ("Çınar".encode("utf-8-sig"), "utf-8"),
        ("Çınar".encode("utf-16"), "utf-16"),
        ("Çınar ağacı".encode("utf-16-le"), "utf-16"),
        ("Çınar ağacı".encode("utf-16-be"), "utf-16"),
        ("Çınar".encode("utf-32"), "utf-32"),
    ],
)
def test_the_encoding_is_found(data, encoding):
    decoded = decode_text(data, PATH)
    assert decoded.text.startswith("Çınar")
    assert decoded.encoding == encoding
    assert decoded.bad_lines == ()


def test_lines_that_are_not_utf_8_are_named():
    decoded = decode_text("iyi\nþiþli\niyi\nýðdýr".encode("latin-1"), PATH)
    assert decoded.bad_lines == ((2, 0xFE), (4, 0xFD))
    error = not_utf8_error(decoded, PATH)
    assert "2 (byte 0xfe), 4 (byte 0xfd)" in str(error)
    assert "WINDOWS-1254" in str(error)


@pytest.mark.parametrize("data", [b"\xff\xfea", b"\xff\xfe\x00\xd8a\x00"])
def test_broken_utf_16_is_refused(data):
    with pytest.raises(DataError, match="does not stay so"):
        decode_text(data, PATH)


def test_binary_files_are_refused():
    with pytest.raises(DataError, match="binary file"):
        decode_text(b"\x89PNG\r\n\x1a\n\x00" + bytes(range(1, 100)), PATH)


def test_lines_end_where_editors_end_them():
    assert split_lines("a\u2028b\nc\r\nd\x0be") == ["a\u2028b", "c", "d\x0be"]
    assert split_lines("a\rb") == ["a", "b"]
