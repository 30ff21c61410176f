"""Whatever bytes a safetensors folder has: a clear error or its tensors, and little memory."""

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ince.errors import InceError
from ince.formats.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from ince.formats.tensor_bytes import read_tensor_header
from ince.models.source import SafetensorsSource

SLACK = 192 << 10

TENSORS = {
    "a": torch.arange(60.0).view(6, 10),
    "b": torch.arange(8, dtype=torch.bfloat16),
    "c": torch.tensor([[7]], dtype=torch.int64),
    "d": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


def read_all(folder: Path) -> None:
    """Everything that can be asked of a folder, in both ways of reading it."""
    checkpoint = Checkpoint(folder)
    total = sum(file.stat().st_size for file in checkpoint.files)
    for name, tensor in checkpoint:
        assert tuple(tensor.shape) == checkpoint.entries[name].shape
        assert tensor.numel() * tensor.element_size() <= total
        checkpoint.tensor(name)
    source = SafetensorsSource(folder)
    for name in source.order():
        source.read(name)


def header_of(path: Path) -> None:
    """The second reading of a header, which does not rely on the first."""
    read_tensor_header(path)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("safetensors") / SINGLE_FILE
    save_file(TENSORS, path, metadata={"format": "pt"})
    read_all(path.parent)
    return path.read_bytes()


@pytest.mark.parametrize("seconds", [1.5, pytest.param(30, marks=pytest.mark.long)])
def test_spoiled_files(single: bytes, tmp_path: Path, survives, mutate, seconds: float) -> None:
    path = tmp_path / SINGLE_FILE

    def attempt(dice) -> None:
        path.write_bytes(mutate(single, dice))
        try:
            header_of(path)
        finally:
            read_all(tmp_path)

    tried, refused = survives(attempt, seconds)
    assert 0 < refused < tried


ODD_NUMBERS = st.sampled_from(
    [-1, -(2**60), 2**31, 2**60, 2**64, 10**400, 1e400, 0.5, float("nan")]
)
NUMBERS = st.integers(0, 16) | st.integers(0, 16) | ODD_NUMBERS
ODD = st.one_of(st.none(), st.booleans(), st.text(max_size=5), NUMBERS, st.just([]), st.just({}))


@st.composite
def entries(draw) -> dict[str, object]:
    """A right entry, with perhaps one thing wrong."""
    length = draw(st.integers(0, 16))
    entry: dict[str, object] = {
        "dtype": "F32",
        "shape": [length],
        "data_offsets": [0, 4 * length],
    }
    wrong = draw(st.sampled_from(["nothing", "dtype", "shape", "data_offsets", "absent"]))
    if wrong == "absent":
        del entry[draw(st.sampled_from(sorted(entry)))]
    elif wrong == "dtype":
        names = ["BF16", "I64", "BOOL", "F4", "F8_E8M0", "C64", "X"]
        entry["dtype"] = draw(st.sampled_from(names) | ODD)
    elif wrong != "nothing":
        entry[wrong] = draw(st.lists(NUMBERS, max_size=4) | st.lists(ODD_NUMBERS, max_size=2) | ODD)
    return entry


ENTRY = entries() | entries() | ODD
NAMES = st.text(max_size=4) | st.sampled_from(["a", "b", "__metadata__"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(NAMES, ENTRY, max_size=3),
    length=st.none() | st.none() | st.integers(0, 2**64 - 1),
    data=st.binary(max_size=64),
)
def test_lying_headers(tmp_path: Path, header: object, length: int | None, data: bytes) -> None:
    encoded = json.dumps(header).encode()
    size = len(encoded) if length is None else length
    path = tmp_path / SINGLE_FILE
    path.write_bytes(size.to_bytes(8, "little") + encoded + data)
    for read, target in ((header_of, path), (read_all, tmp_path)):
        tracemalloc.start()
        try:
            read(target)
        except InceError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < path.stat().st_size + SLACK


@pytest.mark.parametrize("depth", [200, 100_000])
def test_deep_headers(tmp_path: Path, depth: int) -> None:
    for text in ("[" * depth, '{"a":' * depth, '{"a":' * depth + "1" + "}" * depth):
        encoded = text.encode()
        path = tmp_path / SINGLE_FILE
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
        for read, target in ((header_of, path), (read_all, tmp_path)):
            with pytest.raises(InceError):
                read(target)


def test_2_to_the_60_bytes(tmp_path: Path) -> None:
    shapes = ([2**58], [2**30, 2**28], [2**32, 2**32, 2**32], [2**63, 0])
    for shape in shapes:
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**60]}
        encoded = json.dumps({"a": entry}).encode()
        path = tmp_path / SINGLE_FILE
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(64))
        for read, target in ((header_of, path), (read_all, tmp_path)):
            with pytest.raises(InceError):
                read(target)


FILES = st.sampled_from(
    [
        "one.safetensors",
        "two.safetensors",
        "none.safetensors",
        "folder.safetensors",
        "a\0.safetensors",
        "\ud800.safetensors",
        "x" * 300 + ".safetensors",
        ".safetensors",
        "..",
        ".",
        "",
        "../one.safetensors",
        "C:\\one.safetensors",
        "one.bin",
    ]
)


RIGHT = {"a": "one.safetensors", "b": "two.safetensors"}
WEIGHT_MAPS = st.one_of(
    st.builds(lambda change: RIGHT | change, st.dictionaries(NAMES, FILES, max_size=1)),
    st.dictionaries(NAMES, FILES | ODD, max_size=3),
    ODD,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.fixed_dictionaries({"weight_map": WEIGHT_MAPS}) | ODD)
@example(content={"weight_map": RIGHT | {"b": "x" * 300 + ".safetensors"}})
def test_an_index_and_shards_that_disagree(tmp_path: Path, content: object) -> None:
    if not (tmp_path / "one.safetensors").exists():
        save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
        save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
        (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / INDEX_FILE).write_text(json.dumps(content))
    try:
        read_all(tmp_path)
    except InceError:
        pass
    else:  # right after all: every tensor where it is
        assert isinstance(content, dict)
        assert content["weight_map"].items() <= RIGHT.items()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"weight_map": {"a": NaN}}', b"1e999"]
)
def test_an_index_that_is_not_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX_FILE).write_bytes(content)
    with pytest.raises(InceError):
        Checkpoint(tmp_path)
