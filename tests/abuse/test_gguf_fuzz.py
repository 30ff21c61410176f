"""Whatever bytes a GGUF file has: a clear error or a model, and no memory beyond the file."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ince.errors import InceError
from ince.formats.gguf import GGUFFile
from ince.models.gguf_description import empty_model, read_description
from ince.models.gguf_plan import plan_tensors

SLACK = 192 << 10  # of Python for an open file, whatever it holds


def read_all(path: Path) -> None:
    """Everything that can be asked of a file."""
    file = GGUFFile(path)
    for value in file.metadata.values():
        if not isinstance(value, str | int | float):
            list(value)
    total = sum(entry.num_bytes for entry in file.entries.values())
    assert total <= path.stat().st_size
    for name in file.entries:
        file.tensor(name)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a value and a tensor of every kind."""
    path = tmp_path_factory.mktemp("gguf") / "valid.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for kind in ("uint8", "int8", "uint16", "int16", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"x.{kind}", 7)
    writer.add_float64("x.float64", 0.5)
    writer.add_bool("x.bool", True)
    writer.add_token_list([f"token {i}" for i in range(20)])
    writer.add_token_scores([0.5] * 20)
    writer.add_array("x.flags", [True, False])
    weights = np.random.default_rng(0).standard_normal((2, 64), dtype=np.float32)
    writer.add_tensor("F32", weights)
    for name in ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        kind = GGMLQuantizationType[name]
        writer.add_tensor(name, quantize(weights, kind), raw_dtype=kind)
    for name, width in (("Q2_K", 84), ("Q3_K", 110), ("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)):
        blocks = np.full((2, width), 77, np.uint8)
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read_all(path)
    return path.read_bytes()


@pytest.mark.parametrize("seconds", [1.5, pytest.param(30, marks=pytest.mark.long)])
def test_spoiled_files(valid: bytes, tmp_path: Path, survives, mutate, seconds: float) -> None:
    path = tmp_path / "x.gguf"

    def attempt(dice) -> None:
        path.write_bytes(mutate(valid, dice))
        read_all(path)

    tried, refused = survives(attempt, seconds)
    assert 0 < refused < tried  # some changes are of weights only


SMALL = st.integers(0, 40)
NUMBERS = st.one_of(
    SMALL, SMALL, st.sampled_from([2**31, 2**32 - 1, 2**33, 2**60, 2**63, 2**64 - 1])
)
SHORT = st.binary(max_size=12) | st.sampled_from([b"general.alignment", b"a", b"a", b"b"])


def text(length: int | None, value: bytes) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


TEXT = st.builds(text, st.none() | st.none() | NUMBERS, SHORT)
KIND = st.integers(0, 13).map(lambda kind: struct.pack("<I", kind))
VALUE = st.one_of(
    st.builds(lambda kind, data: kind + data, KIND, st.binary(max_size=12)),
    st.builds(lambda data: struct.pack("<I", 8) + data, TEXT),
    st.builds(
        lambda kind, count, data: struct.pack("<I", 9) + kind + struct.pack("<Q", count) + data,
        KIND,
        NUMBERS,
        st.binary(max_size=40),
    ),
)
INFO = st.builds(
    lambda name, rank, sizes, kind, offset: (
        name
        + struct.pack("<I", len(sizes) if rank is None else rank)
        + struct.pack(f"<{len(sizes)}Q", *sizes)
        + struct.pack("<IQ", kind, offset)
    ),
    TEXT,
    st.none() | st.none() | NUMBERS.map(lambda n: n % 2**32),
    st.lists(NUMBERS, max_size=5),
    st.integers(0, 45),
    st.sampled_from([0, 32, 64, 2**63]) | NUMBERS,
)


@st.composite
def headers(draw) -> bytes:
    """Files that are well formed in most places and lie in some."""
    keys = draw(st.lists(st.builds(bytes.__add__, TEXT, VALUE), max_size=3))
    infos = draw(st.lists(INFO, max_size=3))
    num_tensors = draw(st.just(len(infos)) | st.just(len(infos)) | NUMBERS)
    num_keys = draw(st.just(len(keys)) | st.just(len(keys)) | NUMBERS)
    version = draw(st.sampled_from([3, 3, 3, 2, 1, 4, 0x03000000]))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)
    return head + b"".join(keys) + b"".join(infos) + bytes(draw(st.integers(0, 200)))


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=headers())
@example(content=b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0))
def test_a_header_takes_no_more_memory_than_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        read_all(path)
    except InceError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < len(content) + SLACK


def test_a_long_header_takes_little_more_than_itself(tmp_path: Path) -> None:
    tokens = b"".join(text(None, b"token %d" % i) for i in range(200_000))
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    content += text(None, b"tokens") + struct.pack("<IIQ", 9, 8, 200_000) + tokens
    content += text(None, b"scores") + struct.pack("<IIQ", 9, 6, 1_000_000) + bytes(4_000_000)
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    file = GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file.metadata["tokens"]) == 200_000
    # What is read ahead is 1 MiB; a list that grows has an eighth of itself to spare.
    assert peak < len(content) * 1.15 + (2 << 20)


@pytest.mark.parametrize("seconds", [2.5, pytest.param(30, marks=pytest.mark.long)])
def test_a_spoiled_description_is_one_clear_error(
    tmp_path: Path, write_gguf, survives, mutate, seconds: float
) -> None:
    """Past the header, transformers makes config and tokenizer of the metadata."""
    path = write_gguf(tmp_path / "x.gguf")
    content = path.read_bytes()
    header = content[: min(e.start for e in GGUFFile(path).entries.values())]

    def read() -> None:
        file = GGUFFile(path)
        config, _ = read_description(file)
        assert plan_tensors(file, empty_model(file, config))

    def attempt(dice) -> None:
        path.write_bytes(mutate(header, dice) + content[len(header) :])
        read()

    read()  # and import what it needs, before time is taken
    _, refused = survives(attempt, seconds, 512 << 20)
    assert refused
