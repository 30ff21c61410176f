"""A header is taken apart as it was written, and refused where it lies."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFWriter

from ince.errors import CorruptFileError, InceError, ModelReferenceError
from ince.formats.gguf import GGUFFile
from ince.formats.gguf.cursor import StringArray


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def file(
    *infos: bytes,
    keys: tuple[bytes, ...] = (),
    data: bytes = bytes(64),
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file by hand, as wrong as the caller wants it."""
    num_tensors, num_keys = counts or (len(infos), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)
    head += b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def opened(tmp_path: Path, content: bytes) -> GGUFFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return GGUFFile(path)


def test_metadata_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, "llama")
    numbers = {
        "uint8": 200,
        "int8": -100,
        "uint16": 60000,
        "int16": -30000,
        "uint32": 4_000_000_000,
        "int32": -2_000_000_000,
        "uint64": 2**63,
        "int64": -(2**62),
        "float32": 0.5,
        "float64": 0.1,
        "bool": True,
        "string": "ışık 💡",
    }
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.tokens", ["", "a", "ğü", "💡"])
    writer.add_array("x.scores", [0.5, -1.5])
    writer.add_array("x.flags", [True, False])
    writer.add_tensor("a", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GGUFFile(path).metadata
    for kind, value in numbers.items():
        assert metadata[f"x.{kind}"] == value
        assert type(metadata[f"x.{kind}"]) is type(value)
    tokens = metadata["x.tokens"]
    assert isinstance(tokens, StringArray)
    assert list(tokens) == tokens[:] == ["", "a", "ğü", "💡"]
    assert tokens[-1] == "💡"
    with pytest.raises(IndexError):
        tokens[4]
    assert metadata["x.scores"].tolist() == [0.5, -1.5]
    assert metadata["x.flags"].tolist() == [True, False]


def test_version_2_and_alignment(tmp_path: Path) -> None:
    alignment = key(b"general.alignment", 4, struct.pack("<I", 64))
    content = file(info(b"a", (2, 3), offset=64), keys=(alignment,), version=2, data=bytes(200))
    entry = opened(tmp_path, content).entries["a"]
    assert (entry.shape, entry.start % 64, entry.num_bytes) == ((3, 2), 0, 24)


def test_big_endian(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x", "llama", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelReferenceError, match="big-endian"):
        GGUFFile(tmp_path / "x")


def test_long_values_are_read(tmp_path: Path) -> None:
    """Longer than what is read ahead."""
    long = key(b"long", 8, text(b"x" * (3 << 20)))
    after = key(b"after", 4, struct.pack("<I", 7))
    got = opened(tmp_path, file(info(b"a", (4,)), keys=(long, after)))
    assert got.metadata["long"] == "x" * (3 << 20)
    assert got.metadata["after"] == 7
    assert got.entries["a"].shape == (4,)


U32 = struct.Struct("<I").pack
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "another file": (b"\x80\x04pickle", "not a GGUF file"),
    "only the name": (b"GGUF", "ends inside its header"),
    "version 1": (file(version=1), "version of GGUF"),
    "version 9": (file(version=9), "version of GGUF"),
    "many tensors": (file(counts=(2**62, 0)), "the list of tensors"),
    "many keys": (file(counts=(0, 2**40)), "the metadata"),
    "more tensors than any model": (
        file(counts=(200_000, 0), data=bytes(6_000_000)),
        "longer than that of any model",
    ),
    "a long name": (file(struct.pack("<Q", 2**60) + b"a"), "ends inside its header"),
    "a long array": (
        file(keys=(key(b"k", 9, U32(5) + struct.pack("<Q", 2**60)),)),
        "ends inside its header",
    ),
    "a long array of strings": (
        file(keys=(key(b"k", 9, U32(8) + struct.pack("<Q", 2**60)),)),
        "ends inside its header",
    ),
    "an array of arrays": (
        file(keys=(key(b"k", 9, U32(9) + struct.pack("<Q", 1)),)),
        "unknown type",
    ),
    "an unknown value": (file(keys=(key(b"k", 77, b"1234"),)), "unknown type"),
    "a truth value of 2": (file(keys=(key(b"k", 7, b"\2"),)), "neither 0 nor 1"),
    "a key twice": (file(keys=(key(b"k", 0, b"1"),) * 2), "stands twice"),
    "a key that is not UTF-8": (file(keys=(key(b"\xff", 0, b"1"),)), "not UTF-8"),
    "a text that is not UTF-8": (file(keys=(key(b"k", 8, text(b"\xff")),)), "not UTF-8"),
    "an alignment of 0": (
        file(keys=(key(b"general.alignment", 4, U32(0)),)),
        "not an alignment",
    ),
    "an alignment of 24": (
        file(keys=(key(b"general.alignment", 4, U32(24)),)),
        "not an alignment",
    ),
    "an alignment of 2^31": (
        file(keys=(key(b"general.alignment", 4, U32(1 << 31)),)),
        "not an alignment",
    ),
    "an alignment as text": (
        file(keys=(key(b"general.alignment", 8, text(b"32")),)),
        "not an alignment",
    ),
    "a tensor twice": (file(info(b"a", (2,)), info(b"a", (2,), offset=32)), "listed twice"),
    "a name that is not UTF-8": (file(info(b"\xfe", (2,))), "not UTF-8"),
    "five dimensions": (file(info(b"a", (1,) * 5)), "too many dimensions"),
    "2^32-1 dimensions": (file(text(b"a") + b"\xff" * 4), "too many dimensions"),
    "no weights": (file(info(b"a", (2, 0))), "shape"),
    "half a block": (file(info(b"a", (33, 2), kind=2)), "multiple of 32"),
    "2^60 bytes": (file(info(b"a", (2**58,))), "outside the file"),
    "dimensions that overflow": (file(info(b"a", (2**33, 2**33, 2**33))), "outside the file"),
    "past the end": (file(info(b"a", (4,), offset=64)), "outside the file"),
    "far past the end": (file(info(b"a", (4,), offset=2**63)), "outside the file"),
    "half past the end": (file(info(b"a", (24,))), "outside the file"),
    "at an odd place": (file(info(b"a", (4,), offset=4)), "multiple of 32 bytes"),
    "one over the other": (
        file(info(b"a", (12,)), info(b"b", (4,), offset=32)),
        "'a' and 'b' lie over each other",
    ),
    "unknown type": (file(info(b"a", (4,), kind=99)), "(?s)not known.*type 99"),
    "removed type": (file(info(b"a", (4,), kind=31)), "(?s)not known.*Q4_0_4_4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    if name == "half past the end":
        content = content[:-32] + bytes(31)
    with pytest.raises(InceError, match=message):
        opened(tmp_path, content)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    keys = (
        key(b"name", 8, text(b"model")),
        key(b"tokens", 9, U32(8) + struct.pack("<Q", 2) + text(b"a") + text(b"b")),
    )
    content = file(info(b"a", (16,)), keys=keys)
    assert opened(tmp_path, content).entries.keys() == {"a"}
    for length in range(len(content)):
        with pytest.raises(InceError):
            opened(tmp_path, content[:length])


def test_a_token_that_is_not_utf8_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    tokens = key(b"t", 9, U32(8) + struct.pack("<Q", 1) + text(b"\xff"))
    value = opened(tmp_path, file(keys=(tokens,))).metadata["t"]
    with pytest.raises(CorruptFileError, match="not UTF-8: t"):
        value[0]
