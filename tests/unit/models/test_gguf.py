"""A GGUF file is converted once, and the copy is checked before it is trusted."""

from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ince.errors import InceError, ModelReferenceError
from ince.files import read_json
from ince.models import gguf
from ince.models.gguf import convert_gguf


class FakeTokenizer:
    """Saves a file as a tokenizer does."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Replace transformers' reader; every reading is noted."""
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    seen: list[Path] = []

    def read(path: Path) -> tuple[LlamaForCausalLM, FakeTokenizer]:
        seen.append(path)
        return tiny(), FakeTokenizer()

    monkeypatch.setattr(gguf, "_read", read)
    return seen


def test_converted_once(source: Path, reads: list[Path]) -> None:
    told: list[tuple[str, int, int]] = []
    folder = convert_gguf(source, progress=lambda *step: told.append(step))
    assert convert_gguf(source) == folder
    assert convert_gguf(source, verify=True) == folder
    assert reads == [source]
    assert told == [("converting", 0, 1), ("converting", 1, 1)]
    saved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(saved.lm_head.weight, tiny().lm_head.weight)
    assert read_json(folder / "config.json")["architectures"] == ["LlamaForCausalLM"]


def test_same_bytes_elsewhere_share_the_copy(source: Path, reads: list[Path]) -> None:
    folder = convert_gguf(source)
    twin = source.with_name("twin.gguf")
    twin.write_bytes(source.read_bytes())
    assert convert_gguf(twin) == folder
    assert reads == [source]


def test_other_bytes_are_another_model(source: Path, reads: list[Path]) -> None:
    folder = convert_gguf(source)
    source.write_bytes(b"GGUF and something else")
    assert convert_gguf(source) != folder
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["shorter", "flipped", "missing", "manifest", "touched"])
def test_damaged_copy_is_made_again(source: Path, reads: list[Path], damage: str) -> None:
    folder = convert_gguf(source)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if damage == "shorter":
        weights.write_bytes(content[:-1])
    elif damage == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (folder / "ince-source.json").write_text("{")
    else:
        weights.touch()
    convert_gguf(source)
    assert len(reads) == (1 if damage == "touched" else 2)  # same bytes at a new time are fine
    assert weights.read_bytes() == content


def test_failure_leaves_nothing(
    source: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("killed half-way")

    monkeypatch.setattr(gguf, "_write_manifest", fail)
    with pytest.raises(RuntimeError):
        convert_gguf(source)
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"]


def _convert_in_child(source: str, started: object) -> None:
    def read(_: Path) -> tuple[LlamaForCausalLM, FakeTokenizer]:
        started.wait(5)  # both are here before either writes
        return tiny(), FakeTokenizer()

    gguf._read = read
    convert_gguf(Path(source))


def test_two_processes_at_once(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    context = get_context("fork")
    started = context.Event()
    children = [
        context.Process(target=_convert_in_child, args=(str(source), started)) for _ in range(2)
    ]
    for child in children:
        child.start()
    started.set()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    monkeypatch.setattr(gguf, "_read", lambda _: pytest.fail("converted again"))
    folder = convert_gguf(source, verify=True)
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelReferenceError, match="not a GGUF file"):
        convert_gguf(path)


def test_damaged_gguf_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(200)))
    with pytest.raises(ModelReferenceError, match="cannot read this GGUF"):
        convert_gguf(path)
    assert capfd.readouterr().err == ""


def test_cache_that_cannot_be_written(
    source: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InceError, match="(?s)cache.*INCE_CACHE"):
        convert_gguf(source)
    assert not reads
