"""What a folder in 4 bits holds, read back from files that are written here by hand."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ince.errors import ModelReferenceError, QuantError
from ince.formats.bitsandbytes import to_bitsandbytes
from ince.models.source import SafetensorsSource
from ince.publish import describe_quantized
from ince.publish import quantized as module
from ince.quant import Linear4bit, NF4Config

SHAPES = {"q_proj": (48, 40), "down_proj": (40, 24)}


@pytest.fixture
def folders(tmp_path):
    """A model of three layers in 16 bits, and the same in 4."""

    def make(**settings):
        torch.manual_seed(0)
        config = NF4Config(**settings)
        kept = {"embed.weight": torch.randn(50, 40), "norm.weight": torch.ones(40)}
        original, packed = dict(kept), dict(kept)
        for number in range(3):
            for kind, (rows, columns) in SHAPES.items():
                layer = nn.Linear(columns, rows, bias=False)
                name = f"layers.{number}.{kind}"
                original[f"{name}.weight"] = layer.weight.detach().clone()
                packed |= to_bitsandbytes(name, Linear4bit.from_linear(layer, config))
        for place, tensors in (("original", original), ("packed", packed)):
            (tmp_path / place).mkdir()
            tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(tensors, tmp_path / place / "model.safetensors")
        return tmp_path / "packed", SafetensorsSource(tmp_path / "original")

    return make


def test_what_is_packed_and_what_is_kept(folders):
    packed, original = folders()
    found = describe_quantized(packed, original)
    assert [(kind.name, kind.num_tensors) for kind in found.kinds] == [
        ("q_proj", 3),
        ("down_proj", 3),
    ]
    assert found.num_packed == 3 * (48 * 40 + 40 * 24)
    assert (found.num_kept, found.kept_bytes) == (51 * 40, 51 * 40 * 4)
    assert found.kept[0] == "embed.weight"
    assert found.packed_bytes == sum(kind.num_bytes for kind in found.kinds)
    assert found.file_bytes == (packed / "model.safetensors").stat().st_size
    assert found.file_bytes > found.packed_bytes + found.kept_bytes
    assert found.bits_per_packed_weight == 8 * found.packed_bytes / found.num_packed
    assert 4 < found.bits_per_packed_weight < found.bits_per_weight < 32


def test_it_is_ready_for_json(folders):
    packed, original = folders()
    content = describe_quantized(packed, original).to_dict()
    assert content["kinds"][0]["measured"] == "layers.1.q_proj.weight"
    assert content["bits_per_weight"] > 4


@pytest.mark.parametrize("settings", [{}, {"double_quant": False}, {"blocksize": 32}])
@pytest.mark.parametrize("run", [64, 4096])
def test_the_error_is_that_of_the_weight_in_the_middle(folders, monkeypatch, settings, run):
    packed, original = folders(**settings)
    monkeypatch.setattr(module, "_RUN", run)
    for kind in describe_quantized(packed, original).kinds:
        weight = original.read(kind.measured)
        rows, columns = weight.shape
        layer = nn.Linear(columns, rows, bias=False)
        layer.weight.data.copy_(weight)
        rounded = Linear4bit.from_linear(layer, NF4Config(**settings)).dequantize(torch.float32)
        expected = float((weight - rounded).norm() / weight.norm())
        assert kind.relative_error == pytest.approx(expected, rel=1e-5)
        assert 0.05 < kind.relative_error < 0.15


def test_without_an_original_there_is_no_error_to_tell(folders):
    packed, _ = folders()
    assert {kind.relative_error for kind in describe_quantized(packed, None).kinds} == {None}
    strange = describe_quantized(packed, SafetensorsSource(packed))
    assert {kind.relative_error for kind in strange.kinds} == {None}


def test_a_folder_without_packed_weights(tmp_path):
    save_file({"norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    found = describe_quantized(tmp_path, None)
    assert (found.kinds, found.num_packed, found.bits_per_packed_weight) == ((), 0, 0)
    assert found.bits_per_weight == 32


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ModelReferenceError, match="no model weights"):
        describe_quantized(tmp_path, None)


def test_a_damaged_weight_is_named(folders, tmp_path):
    packed, original = folders()
    tensors = {
        name: SafetensorsSource(packed).read(name) for name in SafetensorsSource(packed).entries
    }
    del tensors["layers.1.q_proj.weight.absmax"]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(QuantError, match="missing") as caught:
        describe_quantized(packed, original)
    assert "layers.1.q_proj.weight.absmax" in caught.value.where
