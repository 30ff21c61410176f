"""Disks that fill and files that lie, while a model is loaded or written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ince.errors import CorruptFileError, InceError, ModelReferenceError
from ince.models import load_model, save_quantized
from ince.quant import NF4Config

WITH_LIMIT = """
import resource, signal, sys, logging
from pathlib import Path
import torch, ince
from ince.models import save_quantized
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
logging.basicConfig(format="LOG %(message)s")
folder, out = map(Path, sys.argv[1:])
model, _ = ince.load_model(folder, quantization=ince.NF4Config(), device="cpu", cache=True)
assert not any(t.is_meta for t in model.state_dict().values())
print("loaded")
try:
    save_quantized(folder, out, ince.NF4Config())
except (ince.errors.InceError, OSError) as error:
    print("refused", type(error).__name__)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=64,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=None,
    )
    folder = tmp_path / "model"
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="200KB")
    inner = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>").save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_files_that_cannot_be_written_cost_the_cache_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "results").mkdir()
    command = [sys.executable, "-c", WITH_LIMIT, str(folder), str(tmp_path / "results" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "loaded"
    assert done.stdout.splitlines()[1].startswith("refused")
    assert done.stderr.count("LOG the packed model is not kept") == 1
    assert list((tmp_path / "results").iterdir()) == []
    assert [path for path in (tmp_path / "cache" / "packed").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_shard_that_is_cut_off(folder: Path, tmp_path: Path, keep: int) -> None:
    shard = weights_of(folder)[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    for call in (
        lambda: load_model(folder, quantization=NF4Config(), device="cpu", cache=False),
        lambda: save_quantized(folder, tmp_path / "out", NF4Config()),
    ):
        with pytest.raises(CorruptFileError):
            call()
    assert not (tmp_path / "out").exists()


def test_a_shard_of_another_model(folder: Path, tmp_path: Path) -> None:
    shard = weights_of(folder)[1]
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, shard)
    with pytest.raises(ModelReferenceError, match="another shape"):
        save_quantized(folder, tmp_path / "out", NF4Config())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 1 << 50),
        ("intermediate_size", 1 << 45),
        ("hidden_size", 1 << 30),
        ("num_hidden_layers", 1 << 30),
    ],
)
def test_a_config_of_an_absurd_size_allocates_nothing(folder: Path, key: str, value: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InceError):
        load_model(folder, quantization=NF4Config(), device="cpu", cache=False)


def test_a_packed_folder_whose_state_lies(folder: Path, tmp_path: Path) -> None:
    out = save_quantized(folder, tmp_path / "out", NF4Config())
    tensors = load_file(out / "model.safetensors")
    name = next(name for name in tensors if "up_proj" in name and "quant_state" in name)
    state = json.loads(bytes(tensors[name].tolist()))
    for change in ({"shape": [1 << 40, 1 << 20]}, {"shape": [64, 512]}, {"blocksize": 32}):
        text = json.dumps({**state, **change}).encode()
        changed = {**tensors, name: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        save_file(changed, out / "model.safetensors")
        with pytest.raises(InceError):
            load_model(out, device="cpu")
