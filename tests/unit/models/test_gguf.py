"""A GGUF file is streamed, or converted once into a copy that is checked before it is trusted."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ince.errors import CorruptFileError, InceError, ModelReferenceError
from ince.files import read_json
from ince.formats.gguf import GGUFFile
from ince.models import gguf, resolve
from ince.models.gguf import convert_gguf, open_gguf
from ince.models.gguf_description import read_description
from ince.models.packaged import PACKAGED_MODELS, package_file
from ince.models.quiet import quiet_transformers, without_line


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request) -> None:
    if "smollm2_folder" not in request.fixturenames:
        monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path, write_gguf) -> Path:
    return write_gguf(tmp_path / "model.gguf")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every reading of a description is noted."""
    seen: list[Path] = []

    def read(file):
        seen.append(file.path)
        return read_description(file)

    monkeypatch.setattr(gguf, "read_description", read)
    return seen


def as_transformers_reads_it(source: Path) -> dict[str, torch.Tensor]:
    with quiet_transformers(), without_line("de-quantizing GGUF"):
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.bfloat16
        )
    return model.state_dict()


def test_the_copy_is_the_model_of_transformers(source: Path, tmp_path: Path) -> None:
    folder = convert_gguf(source)
    expected = as_transformers_reads_it(source)
    del expected["lm_head.weight"]  # tied
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    # The bytes are those that the library of safetensors writes.
    save_file(expected, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (folder / "model.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()
    assert read_json(folder / "config.json")["architectures"] == ["LlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(folder).tokenize("he") == ["he"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), LlamaForCausalLM)


@pytest.mark.parametrize("read", [convert_gguf, lambda source: open_gguf(source).folder])
def test_the_tokenizer_has_the_tokens_of_the_file(source: Path, read) -> None:
    """A token more, as transformers makes of a file without ``<|endoftext|>``, has no embedding."""
    tokenizer = AutoTokenizer.from_pretrained(read(source))
    assert len(tokenizer) == len(GGUFFile(source).metadata["tokenizer.ggml.tokens"])
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer("<s>he</s>")["input_ids"] == [1, 259, 2]


def test_streaming_gives_the_tensors_of_the_copy(source: Path, reads: list[Path]) -> None:
    stored = load_file(convert_gguf(source) / "model.safetensors")
    streamed = open_gguf(source)
    assert sorted(streamed.order()) == sorted(stored) == sorted(streamed.entries)
    for name, tensor in stored.items():
        assert torch.equal(streamed.read(name), tensor)
        assert streamed.entries[name].shape == tuple(tensor.shape)
    entry = streamed.entries["model.layers.0.self_attn.q_proj.weight"]
    assert (entry.dtype, entry.num_bytes, entry.where) == ("Q4_1", 64 * 2 * 20, source)
    assert streamed.order()[0] == "model.embed_tokens.weight"
    assert read_json(streamed.folder / "config.json")["hidden_size"] == 64
    assert (streamed.folder / "tokenizer.json").exists()
    assert open_gguf(source).folder == streamed.folder
    assert len(reads) == 2  # the copy, and the description; not again
    exact = open_gguf(source, dtype=torch.float32).read("model.norm.weight")
    assert not torch.equal(exact, exact.bfloat16().float())


def test_the_packaged_model_streams_as_its_copy(smollm2_folder: Path) -> None:
    """The copy was made when it was converted whole by transformers, or by what replaced that."""
    file = package_file(PACKAGED_MODELS["smollm2-135m-instruct"])
    streamed = open_gguf(file)
    stored = load_file(smollm2_folder / "model.safetensors")
    assert sorted(streamed.entries) == sorted(stored)
    assert all(torch.equal(streamed.read(name), stored[name]) for name in stored)


def test_progress_counts_bytes(source: Path) -> None:
    told: list[tuple[str, int, int]] = []
    folder = convert_gguf(source, progress=lambda *step: told.append(step))
    assert {(stage, total) for stage, _, total in told} == {("converting", told[-1][1])}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[0][1] == 0
    assert 0 < (folder / "model.safetensors").stat().st_size - told[-1][1] < 4096


def test_converted_once(source: Path, reads: list[Path]) -> None:
    folder = convert_gguf(source)
    assert convert_gguf(source) == folder
    assert convert_gguf(source, verify=True) == folder
    assert reads == [source]
    assert resolve(source).folder == folder


def test_same_bytes_elsewhere_share_the_copy(source: Path, reads: list[Path]) -> None:
    folder = convert_gguf(source)
    twin = source.with_name("twin.gguf")
    twin.write_bytes(source.read_bytes())
    assert convert_gguf(twin) == folder
    assert reads == [source]


def test_other_bytes_are_another_model(source: Path, reads: list[Path]) -> None:
    folder = convert_gguf(source)
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    source.write_bytes(content)
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
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("killed half-way")

    monkeypatch.setattr(gguf, "_write_manifest", fail)
    with pytest.raises(RuntimeError):
        convert_gguf(source)
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"]


def _convert_in_child(source: str, started: object) -> None:
    def read(file):
        started.wait(5)  # both are here before either writes
        return read_description(file)

    gguf.read_description = read
    convert_gguf(Path(source))


def test_two_processes_at_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(gguf, "read_description", lambda _: pytest.fail("converted again"))
    folder = convert_gguf(source, verify=True)
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelReferenceError, match="not a GGUF file"):
        convert_gguf(path)


def test_damaged_gguf_is_one_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(200)))
    with pytest.raises(InceError):
        convert_gguf(path)
    assert capfd.readouterr().err == ""


def test_an_architecture_that_nobody_reads(tmp_path: Path, write_gguf) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture="arctic")
    for read in (convert_gguf, open_gguf):
        with pytest.raises(ModelReferenceError, match="(?s)cannot read this GGUF.*arctic"):
            read(path)


def test_a_type_that_is_not_streamed_is_converted(tmp_path: Path, write_gguf) -> None:
    path = write_gguf(
        tmp_path / "model.gguf",
        extra={
            "blk.0.ffn_down": ("TQ2_0", np.zeros((64, 256), np.float32)),
            "blk.1.ffn_down": ("Q8_0", np.zeros((64, 256), np.float32)),
            **{
                f"blk.{i}.ffn_{w}": ("F32", np.zeros((256, 64), np.float32))
                for i in (0, 1)
                for w in ("up", "gate")
            },
        },
        metadata={"feed_forward_length": 256},
    )
    with pytest.raises(ModelReferenceError, match="type TQ2_0"):
        open_gguf(path)
    stored = load_file(convert_gguf(path) / "model.safetensors")
    expected = as_transformers_reads_it(path)
    assert all(torch.equal(stored[name], expected[name]) for name in stored)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"blk.1.attn_v": None}, r"v_proj\.weight' is not in it"),
        ({"blk.0.attn_q_norm": ("F32", np.ones(16, np.float32))}, "have no place in the model"),
        ({"blk.0.attn_v": ("F32", np.ones((64, 64), np.float32))}, "another shape"),
        ({"blk.7.attn_v": ("F32", np.ones((32, 64), np.float32))}, "have no place in the model"),
    ],
)
def test_a_file_that_is_not_the_model(tmp_path: Path, write_gguf, extra, message: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", extra=extra)
    for read in (convert_gguf, open_gguf):
        with pytest.raises(ModelReferenceError, match=message):
            read(path)


@pytest.mark.parametrize(
    "metadata",
    [{"block_count": 2**31 - 1}, {"rope.dimension_count": 2**31 - 2}, {"expert_count": 2**30}],
)
def test_a_description_of_a_monster(tmp_path: Path, write_gguf, metadata) -> None:
    path = write_gguf(tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(CorruptFileError, match="not that of a model"):
        convert_gguf(path)


def test_cache_that_cannot_be_written(
    source: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InceError, match="(?s)cache.*INCE_CACHE"):
        convert_gguf(source)
    assert not reads


def test_a_model_of_the_copy_answers_as_one_of_the_file(source: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(convert_gguf(source))
    assert isinstance(model.config, LlamaConfig)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()
