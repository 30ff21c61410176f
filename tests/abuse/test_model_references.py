"""Hostile model folders: nothing in them runs, and nothing outside them is read."""

import json
import pickle
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ince.errors import InceError, ModelReferenceError
from ince.models import load_model


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_pickled_weights_are_not_opened(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelReferenceError, match="pickle"):
        load_model(folder, device="cpu")
    assert not mark.exists()


def test_pickle_named_as_safetensors_is_not_opened(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InceError, match="safetensors"):
        load_model(folder, device="cpu")
    assert not mark.exists()


def test_code_beside_the_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = {
        "model_type": "evil",
        "auto_map": {
            "AutoConfig": "modeling_evil.Config",
            "AutoModelForCausalLM": "modeling_evil.Model",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({}, folder / "model.safetensors")
    with pytest.raises(ModelReferenceError, match="never run"):
        load_model(folder, device="cpu")
    assert not mark.exists()


def test_index_does_not_reach_outside(folder: Path, tmp_path: Path) -> None:
    save_file({}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"lm_head.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InceError, match="outside the model's folder"):
        load_model(folder, device="cpu")


def test_absurd_header_is_refused_without_allocating(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(InceError, match="not readable as safetensors"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param("\x00", id="null"),
        pytest.param("a/b\x00c", id="null inside"),
        pytest.param("x" * 5000, id="long"),
        pytest.param("y/" + "x" * 5000, id="long path"),
        pytest.param("..", id="parent"),
        pytest.param("/", id="root"),
        pytest.param("~no-such-user/x/y", id="no home"),
    ],
)
def test_odd_references_are_one_clear_error(reference: str) -> None:
    with pytest.raises(InceError):
        load_model(reference, device="cpu")
