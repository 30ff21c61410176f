"""Bytes of a text file to text, whatever editor wrote them.

UTF-8 with and without a byte order mark, UTF-16 and UTF-32 with one, and UTF-16 without
one are read. Single-byte code pages are not guessed: cp1254 taken for latin-1 is silent
damage ("þiþli"), so other bytes are reported with their lines instead.
"""

import codecs
from dataclasses import dataclass
from pathlib import Path

from ince.errors import DataError

__all__ = ["DecodedText", "decode_text", "not_utf8_error", "split_lines"]

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 4096
# Every second byte of Latin text in UTF-16 is zero; a fifth leaves room for Turkish letters.
_MIN_ZERO_SHARE = 0.2


@dataclass(frozen=True)
class DecodedText:
    """The text of a file.

    Attributes:
        text: without a byte order mark. Bytes that are not UTF-8 stand in it as lone
            surrogates, on the lines named in `bad_lines`.
        encoding: name of the encoding that was found.
        bad_lines: (line, byte value) of the first stray byte on each such line.
    """

    text: str
    encoding: str
    bad_lines: tuple[tuple[int, int], ...] = ()


def _unmarked_utf16(data: bytes) -> str | None:
    sample = data[:_SAMPLE_BYTES]
    zeros_even, zeros_odd = sample[0::2].count(0), sample[1::2].count(0)
    if zeros_even + zeros_odd < _MIN_ZERO_SHARE * len(sample):
        return None
    # In little-endian order the second byte of a pair is the zero one.
    return "utf-16-le" if zeros_odd > zeros_even else "utf-16-be"


def decode_text(data: bytes, path: Path) -> DecodedText:
    """Decode the bytes of a text file.

    Raises:
        DataError: the file is binary, or broken UTF-16 or UTF-32.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:_SAMPLE_BYTES]:
        encoding = _unmarked_utf16(data)
        if encoding is None:
            raise DataError(
                "this is a binary file, not text",
                where=path,
                expected="text in UTF-8 or UTF-16",
                do="export the data as JSONL, CSV or Parquet, with the matching file name",
            )
    if encoding not in (None, "utf-8-sig"):
        try:
            return DecodedText(data.decode(encoding), encoding[: len("utf-16")])
        except UnicodeDecodeError as error:
            raise DataError(
                f"the file begins as {encoding.upper()} but does not stay so",
                where=f"{path}, byte {error.start}",
                got=error.reason,
                do="save it again as UTF-8; it may be cut off",
            ) from error
    codec = encoding or "utf-8"
    try:
        return DecodedText(data.decode(codec), "utf-8")
    except UnicodeDecodeError:
        text = data.decode(codec, errors="surrogateescape")
    bad_lines: list[tuple[int, int]] = []
    for number, line in enumerate(split_lines(text), start=1):
        stray = next((char for char in line if "\udc80" <= char <= "\udcff"), None)
        if stray is not None:
            bad_lines.append((number, ord(stray) - 0xDC00))
    return DecodedText(text, "utf-8", tuple(bad_lines))


def split_lines(text: str) -> list[str]:
    r"""Lines that end in \n, \r\n or (in a file that has no \n) \r, without their ends.

    Not `str.splitlines`: U+2028 and its like are characters of a text, not ends of a line.
    """
    if "\n" not in text and "\r" in text:
        return text.split("\r")
    return [line.removesuffix("\r") for line in text.split("\n")]


def not_utf8_error(decoded: DecodedText, path: Path) -> DataError:
    """The error for a file some of whose lines are not UTF-8."""
    shown = ", ".join(f"{line} (byte 0x{byte:02x})" for line, byte in decoded.bad_lines[:10])
    more = len(decoded.bad_lines) - 10
    return DataError(
        f"{len(decoded.bad_lines)} lines are not UTF-8",
        where=path,
        got=f"line {shown}" + (f" and {more} more" if more > 0 else ""),
        expected="UTF-8 or UTF-16",
        do="convert the file; old Turkish files are often Windows-1254: "
        "iconv -f WINDOWS-1254 -t UTF-8",
    )
