"""Read the header of a GGUF file forwards: numbers, strings and arrays, each within the file.

No length that a file states is believed before it is compared with the bytes that are left:
a header of a few bytes cannot make anybody allocate more than the file has. Strings of an
array, of which a tokenizer has a hundred thousand, stay bytes until they are asked for, so
that what is kept takes no more than it took in the file.

Source: the specification of GGUF, github.com/ggml-org/ggml, docs/gguf.md.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from ince.errors import CorruptFileError

__all__ = ["Cursor", "StringArray", "Value"]

_STRING, _ARRAY = 8, 9
# Number of the type → its format in `struct`; all little-endian.
_SCALARS: dict[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_BOOL = 7
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MIN_STRING_BYTES = 8  # its length
_WINDOW_BYTES = 1 << 20


class StringArray(Sequence[str]):
    """The strings of an array, decoded when asked for.

    Raises:
        CorruptFileError: on reading a string that is not UTF-8.
    """

    def __init__(self, text: bytearray, ends: npt.NDArray[np.int64], where: Path, key: str) -> None:
        self._text, self._ends, self._where, self._key = text, ends, where, key

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return _decoded(bytes(self._text[start : self._ends[index]]), self._where, self._key)


Value = str | int | float | bool | npt.NDArray[Any] | StringArray
"""What a metadata key may hold; numbers of an array are a read-only numpy array."""


def _decoded(data: bytes, where: Path, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(
            f"a text of the file's header is not UTF-8: {what}",
            where=where,
            got=str(data[:40]),
            do="the file is damaged or was written wrongly; get it again",
        ) from error


class Cursor:
    """A position in the header of an open file.

    Args:
        stream: opened for reading bytes, at its start.
        path: for messages.
        num_bytes: of the file; nothing is read beyond.
    """

    def __init__(self, stream: BinaryIO, path: Path, num_bytes: int) -> None:
        self._stream, self._path, self._num_bytes = stream, path, num_bytes
        self._window = b""
        self._window_start = 0
        self._at = 0  # in the window

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._window_start + self._at

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self._num_bytes - self.position

    def check(self, count: int, bytes_each: int, what: str) -> None:
        """Refuse `count` things of at least `bytes_each` when the file has no room for them."""
        if count * bytes_each > self.left:
            raise CorruptFileError(
                f"the file ends inside its header, in {what}",
                where=f"{self._path}, byte {self.position}",
                got=f"{count} × {bytes_each} bytes, of which the file has {self.left}",
                do="the file is cut off or damaged; get it again",
            )

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if count > _WINDOW_BYTES:
            return self._take_long(count, what)
        self._need(count, what)
        start = self._at
        self._at += count
        return self._window[start : self._at]

    def u32(self, what: str) -> int:
        """The next unsigned number of 32 bits."""
        self._need(4, what)
        self._at += 4
        return _U32.unpack_from(self._window, self._at - 4)[0]

    def u64(self, what: str) -> int:
        """The next unsigned number of 64 bits."""
        self._need(8, what)
        self._at += 8
        return _U64.unpack_from(self._window, self._at - 8)[0]

    def text(self, what: str) -> str:
        """The next string: its length in 64 bits, then UTF-8."""
        return _decoded(self.take(self.u64(what), what), self._path, what)

    def value(self, key: str) -> Value:
        """The next value of the metadata, its type in front."""
        kind = self.u32(key)
        if kind == _STRING:
            return self.text(key)
        if kind != _ARRAY:
            return self._numbers(kind, 1, key)[0].item()
        kind = self.u32(key)
        count = self.u64(key)
        return self._strings(count, key) if kind == _STRING else self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> npt.NDArray[Any]:
        code = _SCALARS.get(kind)
        if code is None:
            raise CorruptFileError(
                f"a value of the file's header has an unknown type: {key}",
                where=f"{self._path}, byte {self.position}",
                got="an array of arrays" if kind == _ARRAY else f"type {kind}",
                expected="a number, a string, or an array of these (types 0 to 12)",
                do="the file is damaged, or of a later version of GGUF",
            )
        width = struct.calcsize(code)
        self.check(count, width, key)
        data = self.take(count * width, key)
        if kind == _BOOL and max(data, default=0) > 1:
            raise CorruptFileError(
                f"a truth value of the file's header is neither 0 nor 1: {key}",
                where=self._path,
                got=max(data),
                do="the file is damaged; get it again",
            )
        return np.frombuffer(data, np.dtype(code).newbyteorder("<"))

    def _strings(self, count: int, key: str) -> StringArray:
        self.check(count, _MIN_STRING_BYTES, key)
        ends = np.empty(count, np.int64)
        text = bytearray()
        for index in range(count):
            text += self.take(self.u64(key), key)
            ends[index] = len(text)
        return StringArray(text, ends, self._path, key)

    def _need(self, count: int, what: str) -> None:
        """Have the next `count` bytes, at most a window, in the window."""
        if self._at + count <= len(self._window):
            return
        self.check(count, 1, what)
        start = self.position
        self._window = self._read(start, min(_WINDOW_BYTES, self.left))
        self._window_start, self._at = start, 0

    def _take_long(self, count: int, what: str) -> bytes:
        """As `take`, past the window: what is long is in memory once."""
        self.check(count, 1, what)
        start = self.position
        self._window, self._window_start, self._at = b"", start + count, 0
        return self._read(start, count)

    def _read(self, start: int, count: int) -> bytes:
        self._stream.seek(start)
        data = self._stream.read(count)
        if len(data) < count:
            raise CorruptFileError(
                "the file became shorter while it was read",
                where=self._path,
                do="let whatever writes the file finish, then try again",
            )
        return data
