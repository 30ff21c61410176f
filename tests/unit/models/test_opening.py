"""A model's tensors come from its folder, or from the GGUF file that it is."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from ince.errors import ModelReferenceError
from ince.models import load_model, resolve
from ince.models.gguf_source import GGUFSource
from ince.models.opening import empty_model, open_source
from ince.models.source import SafetensorsSource
from ince.quant import NF4Config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folder(smollm2_folder: Path) -> None:
    assert isinstance(open_source(resolve(smollm2_folder)), SafetensorsSource)


def test_gguf_file_needs_no_copy(write_gguf, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    resolved = resolve(file, convert=False)
    source = open_source(resolved)
    assert isinstance(source, GGUFSource)
    assert resolved.source == file
    model, _ = load_model(file, quantization=NF4Config(), device="cpu")
    assert not list(cache.rglob("*.safetensors"))
    # With a copy, once there is one, and to the bit as without.
    converted = resolve(file)
    assert isinstance(open_source(converted), SafetensorsSource)
    assert converted.weights_digest == resolved.weights_digest
    again, _ = load_model(converted, quantization=NF4Config(), device="cpu")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_gguf_file_is_cached_packed(write_gguf, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    first, _ = load_model(file, quantization=NF4Config(), device="cpu", cache=True)
    assert list((cache / "packed").rglob("*.safetensors"))
    second, _ = load_model(file, quantization=NF4Config(), device="cpu", cache=True)
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gguf_file_in_other_types(dtype: torch.dtype, write_gguf, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    model, _ = load_model(file, dtype=dtype, device="cpu")
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_empty_model_has_no_weights(smollm2_folder: Path) -> None:
    config = AutoConfig.from_pretrained(smollm2_folder)
    model = empty_model(config, SafetensorsSource(smollm2_folder), torch.float16)
    assert {p.device.type for p in model.parameters() if p.ndim > 1} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "head_dim", "num_hidden_layers"])
def test_config_of_an_absurd_size_is_refused(name: str, smollm2_folder: Path) -> None:
    config = AutoConfig.from_pretrained(smollm2_folder)
    setattr(config, name, 1 << 40)
    with pytest.raises(ModelReferenceError, match=f"{name} {1 << 40}"):
        empty_model(config, SafetensorsSource(smollm2_folder), torch.float16)
