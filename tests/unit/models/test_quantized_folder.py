"""A folder in 4 bits is the model quantized in memory, and written without holding it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ince.errors import DiskFullError, ModelReferenceError, OutputError, QuantError
from ince.models import load_model, quantized_folder, save_quantized
from ince.models.source import SafetensorsSource
from ince.quant import NF4Config

COMMON = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
MIXTRAL = {**COMMON, "num_local_experts": 2, "num_experts_per_tok": 1}
NF4 = NF4Config()


def save(model: PreTrainedModel, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.bfloat16().save_pretrained(folder)
    inner = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(**COMMON, mlp_bias=True, tie_word_embeddings=False)
    return save(LlamaForCausalLM(config), tmp_path / "original" / "model")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "packed"


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


def equal(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)


@pytest.mark.parametrize(
    "config",
    [
        NF4,
        NF4Config(quant_type="fp4", double_quant=False, blocksize=128),
        NF4Config(scale_search=True, compute_dtype="float32"),
        NF4Config(quantize_head=True, skip_modules=("layers.0.self_attn",)),
    ],
)
def test_folder_is_the_model_quantized_in_memory(
    config: NF4Config, folder: Path, out: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    expected, _ = load_model(folder, quantization=config, device="cpu")
    assert save_quantized(folder, out, config, progress=lambda *s: told.append(s)) == out
    found, tokenizer = load_model(out, device="cpu")
    assert equal(found, expected)
    assert len(tokenizer) == 2
    stored = sum(entry.num_bytes for entry in SafetensorsSource(folder).entries.values())
    assert told[-1] == ("quantizing", stored, stored)
    assert list(out.parent.iterdir()) == [out]
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_experts_are_stored_as_the_class_has_them(tmp_path: Path, out: Path) -> None:
    folder = save(MixtralForCausalLM(MixtralConfig(**MIXTRAL)), tmp_path / "mixtral")
    expected, _ = load_model(folder, quantization=NF4, device="cpu")
    save_quantized(folder, out, NF4)
    found, _ = load_model(out, device="cpu")
    assert equal(found, expected)
    assert torch.equal(logits(found), logits(expected))


def test_shards_are_listed(folder: Path, out: Path) -> None:
    expected, _ = load_model(folder, quantization=NF4, device="cpu")
    save_quantized(folder, out, NF4, max_shard_bytes=40_000)
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    entries = SafetensorsSource(out).entries
    assert index["metadata"]["total_size"] == sum(e.num_bytes for e in entries.values())
    found, _ = load_model(out, device="cpu")
    assert equal(found, expected)


def test_transformers_with_bitsandbytes_reads_it(folder: Path, out: Path) -> None:
    config = NF4Config(compute_dtype="float32")
    save_quantized(folder, out, config, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours, _ = load_model(out, dtype=torch.float32, device="cpu")
    layer = theirs.model.layers[1].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    packed = ours.model.layers[1].mlp.up_proj.packed
    assert torch.equal(layer.weight.data.flatten(), packed.flatten())
    # Its kernel on CPUs rounds to bfloat16, whatever is asked for.
    assert torch.allclose(logits(theirs), logits(ours), atol=0.03)


def test_config_says_what_was_done(folder: Path, out: Path) -> None:
    save_quantized(folder, out, NF4Config(skip_modules=("k_proj",)), dtype=torch.float16)
    config = json.loads((out / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    assert said["bnb_4bit_quant_type"] == "nf4"
    assert "lm_head" in said["llm_int8_skip_modules"]
    assert "model.layers.0.self_attn.k_proj" in said["llm_int8_skip_modules"]
    assert config == {**before, "dtype": "float16"}


def test_run_that_was_cut_off_goes_on(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, runs = quantized_folder.write_safetensors, SafetensorsSource.runs
    files: list[Path] = []
    read: list[str] = []

    def stop(path: Path, *args: object) -> None:
        files.append(path)
        write(path, *args)  # pyright: ignore[reportArgumentType]
        if len(files) == 3:
            raise KeyboardInterrupt

    def noted(self: SafetensorsSource, name: str, count: int) -> object:
        read.append(name)
        return runs(self, name, count)

    monkeypatch.setattr(quantized_folder, "write_safetensors", stop)
    with pytest.raises(KeyboardInterrupt):
        save_quantized(folder, out, NF4, max_shard_bytes=40_000)
    assert not out.exists()
    monkeypatch.setattr(quantized_folder, "write_safetensors", write)
    monkeypatch.setattr(SafetensorsSource, "runs", noted)
    save_quantized(folder, out, NF4, max_shard_bytes=40_000)
    packed = [name for name in SafetensorsSource(folder).entries if name.endswith("proj.weight")]
    assert 0 < len(read) < len(packed)
    expected, _ = load_model(folder, quantization=NF4, device="cpu")
    found, _ = load_model(out, device="cpu")
    assert equal(found, expected)
    assert list(out.parent.iterdir()) == [out]


def test_run_with_other_settings_begins_again(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = quantized_folder.write_safetensors

    def stop(path: Path, *args: object) -> None:
        write(path, *args)  # pyright: ignore[reportArgumentType]
        if "00002" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(quantized_folder, "write_safetensors", stop)
    with pytest.raises(KeyboardInterrupt):
        save_quantized(folder, out, NF4, max_shard_bytes=40_000)
    monkeypatch.setattr(quantized_folder, "write_safetensors", write)
    other = NF4Config(scale_search=True)  # of the same shapes
    save_quantized(folder, out, other, max_shard_bytes=40_000)
    expected, _ = load_model(folder, quantization=other, device="cpu")
    found, _ = load_model(out, device="cpu")
    assert equal(found, expected)


def test_weights_that_are_not_finite_leave_nothing(folder: Path, out: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, :3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantError, match=f"3 of 8192(.|\n)*{name}"):
        save_quantized(folder, out, NF4, max_shard_bytes=40_000)
    assert list(out.parent.iterdir()) == []


def test_full_disk_leaves_nothing(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = quantized_folder.write_safetensors

    def full(path: Path, *args: object) -> None:
        if "00002" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(quantized_folder, "write_safetensors", full)
    with pytest.raises(DiskFullError):
        save_quantized(folder, out, NF4, max_shard_bytes=40_000)
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(quantized_folder, "write_safetensors", write)
    monkeypatch.setattr(quantized_folder, "_MARGIN_BYTES", 1 << 60)
    with pytest.raises(DiskFullError, match="too little space"):
        save_quantized(folder, out, NF4)
    assert list(out.parent.iterdir()) == []


def test_what_is_there_stays(folder: Path, out: Path) -> None:
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        save_quantized(folder, out, NF4)
    with pytest.raises(OutputError, match="file"):
        save_quantized(folder, out / "mine", NF4)
    assert (out / "mine").read_text() == "mine"
    (out / "mine").unlink()
    save_quantized(folder, out, NF4)  # an empty folder is no obstacle


def test_formats_that_nobody_reads_and_packed_models_are_refused(folder: Path, out: Path) -> None:
    with pytest.raises(QuantError, match="no such 4-bit format"):
        save_quantized(folder, out, NF4Config(quant_type="int4"))
    assert list(out.parent.iterdir()) == []
    save_quantized(folder, out, NF4)
    with pytest.raises(ModelReferenceError, match="quantized already"):
        save_quantized(out, out.with_name("again"), NF4)
