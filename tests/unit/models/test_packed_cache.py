"""The second load is a map of what the first one wrote; what is damaged is made again."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ince.errors import CorruptFileError, DiskFullError, QuantError
from ince.models import load as load_module
from ince.models import load_model, packed_cache, packed_manifest
from ince.models.source import SafetensorsSource
from ince.models.streaming import Finished
from ince.quant import NF4Config

COMMON = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
NF4 = NF4Config()


def save(model: PreTrainedModel, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    inner = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(LlamaForCausalLM(LlamaConfig(**COMMON, mlp_bias=True)), tmp_path / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "_MAX_SHARD_BYTES", 20_000)  # several files
    return tmp_path / "cache" / "packed"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stored tensors that were read."""
    seen: list[str] = []
    read, runs = SafetensorsSource.read, SafetensorsSource.runs

    def noted_read(self: SafetensorsSource, name: str) -> torch.Tensor:
        seen.append(name)
        return read(self, name)

    def noted_runs(self: SafetensorsSource, name: str, count: int) -> Iterator[torch.Tensor]:
        seen.append(name)
        return runs(self, name, count)

    monkeypatch.setattr(SafetensorsSource, "read", noted_read)
    monkeypatch.setattr(SafetensorsSource, "runs", noted_runs)
    return seen


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def equal(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)


def test_second_load_maps_what_the_first_wrote(folder: Path, cache: Path, reads: list[str]) -> None:
    plain, _ = load_model(folder, quantization=NF4, device="cpu", cache=False)
    assert not cache.exists()
    first, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    (entry,) = entries(cache)
    assert len(list(entry.glob("*.safetensors"))) > 3
    reads.clear()
    told: list[tuple[str, int, int]] = []
    second, _ = load_model(
        folder,
        quantization=NF4,
        device="cpu",
        cache=True,
        progress=lambda *step: told.append(step),
    )
    assert reads == []
    assert told[-1][0] == "loading"
    assert told[-1][1] == told[-1][2] > 0
    assert equal(plain, first)
    assert equal(plain, second)
    assert not any(p.requires_grad for p in second.parameters())
    # Every map is aligned as memory from torch is.
    assert all(t.data_ptr() % 64 == 0 for t in second.state_dict().values())


def test_experts_are_cached(tmp_path: Path, reads: list[str]) -> None:
    config = MixtralConfig(**COMMON, num_local_experts=2, num_experts_per_tok=1)
    folder = save(MixtralForCausalLM(config), tmp_path / "experts")
    first, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    reads.clear()
    second, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert reads == []
    assert equal(first, second)


def test_weights_elsewhere_with_the_same_bytes_share_a_cache(
    folder: Path, tmp_path: Path, cache: Path
) -> None:
    load_model(folder, quantization=NF4, device="cpu", cache=True)
    folder.rename(tmp_path / "moved")
    load_model(tmp_path / "moved", quantization=NF4, device="cpu", cache=True)
    assert len(entries(cache)) == 1


def test_other_settings_weights_and_types_have_another_cache(folder: Path, cache: Path) -> None:
    bfloat16 = torch.bfloat16
    load_model(folder, quantization=NF4, dtype=bfloat16, device="cpu", cache=True)
    other = NF4Config(blocksize=128)
    load_model(folder, quantization=other, dtype=bfloat16, device="cpu", cache=True)
    load_model(folder, quantization=NF4, dtype=torch.float32, device="cpu", cache=True)
    assert len(entries(cache)) == 3
    # The type of products is none of the files'.
    half = NF4Config(compute_dtype="float16")
    model, _ = load_model(folder, quantization=half, device="cpu", cache=True)
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.float16
    assert len(entries(cache)) == 3
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    changed, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    plain, _ = load_model(folder, quantization=NF4, device="cpu", cache=False)
    assert equal(changed, plain)
    assert len(entries(cache)) == 4


def test_small_and_plain_models_are_cached_on_demand_only(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(folder, quantization=NF4, device="cpu")
    assert not cache.exists()
    monkeypatch.setattr("ince.models.load.AUTOMATIC_BYTES", 1)
    load_model(folder, device="cpu")
    assert not cache.exists()
    load_model(folder, quantization=NF4, device="cpu")
    assert len(entries(cache)) == 1
    first, _ = load_model(folder, device="cpu", cache=True)
    second, _ = load_model(folder, device="cpu", cache=True)
    assert equal(first, second)
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("damage", ["bytes", "cut off", "gone", "manifest", "touched", "garbage"])
def test_damaged_cache_is_made_again(
    damage: str, folder: Path, cache: Path, reads: list[str]
) -> None:
    good, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    (entry,) = entries(cache)
    file = sorted(entry.glob("*.safetensors"))[2]
    data = bytearray(file.read_bytes())
    if damage == "bytes":
        times = file.stat()
        data[-100] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "cut off":
        file.write_bytes(data[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "manifest":
        (entry / "manifest.json").write_text("{")
    elif damage == "touched":
        os.utime(file)
    else:
        manifest = json.loads((entry / "manifest.json").read_text())
        manifest["files"] = {"99": {}, "x": 1}
        (entry / "manifest.json").write_text(json.dumps(manifest))
    reads.clear()
    model, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert equal(model, good)
    assert bool(reads) == (damage != "touched")
    reads.clear()
    model, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert equal(model, good)
    assert not reads
    assert len(entries(cache)) == 1


def test_load_that_was_cut_off_goes_on(
    folder: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = packed_manifest.PackedFolder.add

    def stop(self: packed_manifest.PackedFolder, number: int) -> None:
        add(self, number)
        if number == 3:
            raise KeyboardInterrupt

    plain, _ = load_model(folder, quantization=NF4, device="cpu", cache=False)
    monkeypatch.setattr(packed_manifest.PackedFolder, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        load_model(folder, quantization=NF4, device="cpu", cache=True)
    monkeypatch.setattr(packed_manifest.PackedFolder, "add", add)
    before = set(reads)
    reads.clear()
    model, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert equal(model, plain)
    every = set(SafetensorsSource(folder).entries)
    assert 0 < len(reads) == len(set(reads)) < len(every)
    done = before - set(reads)
    assert len(done) >= 4
    assert len(entries(cache)) == 1


def test_full_disk_costs_the_cache_only(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _ = load_model(folder, quantization=NF4, device="cpu", cache=False)
    write = packed_cache.write_safetensors
    written: list[Path] = []

    def full(path: Path, *args: object) -> None:
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(packed_cache, "write_safetensors", full)
    with caplog.at_level(logging.WARNING, "ince.models"):
        model, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert equal(model, plain)
    assert len(written) == 3
    assert [r for r in caplog.records if "no space left" in r.getMessage()] == caplog.records
    assert len(caplog.records) == 1
    assert entries(cache) == []


def test_too_little_space_is_seen_before_the_disk_is_full(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed_cache, "_MARGIN_BYTES", 1 << 60)
    load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert "too little space" in caplog.text
    assert entries(cache) == []


def test_cache_that_cannot_be_written_costs_time_only(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "file"))
    model, _ = load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert len(caplog.records) == 1
    assert not any(p.is_meta for p in model.state_dict().values())


def test_fault_of_the_model_is_told_as_such(folder: Path, cache: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantError, match=name):
        load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize("error", [CorruptFileError("cut"), DiskFullError("x"), OSError(5, "x")])
def test_fault_while_reading_is_no_fault_of_the_cache(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Iterator[torch.Tensor]:
        raise error

    monkeypatch.setattr(SafetensorsSource, "runs", fail)
    with pytest.raises(type(error)) as caught:
        load_model(folder, quantization=NF4, device="cpu", cache=True)
    assert caught.value is error


def test_two_loads_at_once_write_one_cache(
    folder: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[packed_cache.CachedLoad] = []

    def noted(load: packed_cache.CachedLoad, put: Callable[[Finished], None]) -> None:
        loads.append(load)
        for finished in load.stream():
            put(finished)

    # transformers itself builds one model at a time only.
    monkeypatch.setattr(load_module, "load_cached", noted)
    told: list[str] = []
    for _ in range(2):
        load_model(
            folder,
            quantization=NF4,
            device="cpu",
            cache=True,
            progress=lambda stage, *_: told.append(stage),
        )
    reads.clear()
    found: list[dict[str, Finished]] = [{}, {}]
    both_began = threading.Barrier(2)

    def run(number: int) -> None:
        both_began.wait()

        def put(finished: Finished) -> None:
            found[number][finished.target.name] = finished

        packed_cache.load_cached(loads[number], put)

    threads = [threading.Thread(target=run, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == len(set(reads))  # the other one waited
    assert len(entries(cache)) == 1
    first, second = found
    assert first.keys() == second.keys() == loads[0].layout.targets.keys()
    for name, one in first.items():
        other = second[name]
        assert one.config == other.config
        assert one.parts.keys() == other.parts.keys()
        assert all(torch.equal(part, other.parts[n]) for n, part in one.parts.items())
        if one.tensor is not None and other.tensor is not None:
            assert torch.equal(one.tensor, other.tensor)
