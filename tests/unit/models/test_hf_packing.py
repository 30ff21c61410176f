"""Packed checkpoints through transformers' loading: what is read, and damage that is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ince import NF4Config
from ince.errors import CorruptFileError, QuantError
from ince.formats.bitsandbytes import to_bitsandbytes
from ince.models.hf_packing import StoredPacked, packable_names
from ince.quant import Linear4bit, packed_modules, quantize_model

NAME = "model.layers.1.mlp.up_proj.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "floats")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "floats", quantization_config=NF4Config()
    )
    model.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def load(folder):
    config = AutoConfig.from_pretrained(folder, quantization_config=NF4Config())
    return AutoModelForCausalLM.from_pretrained(folder, config=config)


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def text(value):
    return torch.frombuffer(bytearray(value.encode()), dtype=torch.uint8)


def lying_shape(tensors):
    state = bytes(tensors[STATE].tolist()).decode()
    tensors[STATE] = text(state.replace("[24, 16]", "[12, 32]"))


def other_values(tensors):
    tensors[f"{NAME}.quant_map"] = torch.linspace(-1, 1, 16)


def not_finite(tensors):
    tensors[f"{NAME}.nested_absmax"] = torch.tensor([torch.nan])


def cut_off(tensors):
    tensors[NAME] = tensors[NAME][:-1].clone()


def without_scales(tensors):
    del tensors[f"{NAME}.absmax"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lying_shape, "does not fit the model"),
        (other_values, "other values for its codes"),
        (not_finite, "not finite"),
        (cut_off, "do not fit its shape"),
        (without_scales, "is missing"),
    ],
)
def test_a_damaged_weight_is_named(folder, damage, message):
    change(folder, damage)
    with pytest.raises(QuantError, match=message) as caught:
        load(folder)
    assert caught.value.where.startswith(NAME)


def test_a_state_that_is_no_text_is_refused_before_anything_is_loaded(folder):
    def edit(tensors):
        tensors[STATE] = text("{")

    change(folder, edit)
    with pytest.raises(QuantError, match="not readable as JSON"):
        load(folder)


def test_weights_of_another_model_are_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 24', '"intermediate_size": 32'))
    with pytest.raises(QuantError, match="does not fit the model"):
        load(folder)


def test_a_packed_embedding_is_refused(folder):
    def edit(tensors):
        name = "model.embed_tokens"
        embedding = nn.Linear(16, 48, bias=False)
        embedding.weight.data = tensors.pop(f"{name}.weight").float()
        tensors |= to_bitsandbytes(name, Linear4bit.from_linear(embedding, NF4Config()))

    change(folder, edit)
    with pytest.raises(QuantError, match="ince has none for"):
        load(folder)


def test_experts_packed_one_by_one_are_refused(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)

    def edit(tensors):
        for name in [name for name in tensors if ".experts." in name]:
            layer = nn.Linear(64, 64, bias=False)
            layer.weight.data = tensors.pop(name).float()
            packed = Linear4bit.from_linear(layer, NF4Config())
            tensors |= to_bitsandbytes(name.removesuffix(".weight"), packed)

    change(tmp_path, edit)
    config = AutoConfig.from_pretrained(tmp_path)
    config.quantization_config = NF4Config()
    with pytest.raises(QuantError, match="in another form"):
        AutoModelForCausalLM.from_pretrained(tmp_path, config=config)


def test_the_packed_weights_of_files_are_listed(folder, tmp_path):
    file = str(folder / "model.safetensors")
    stored = StoredPacked.of([file, "pytorch_model.bin"])
    assert len(stored.weights) == 14
    assert stored.weights[NAME].shape == (24, 16)
    assert bool(stored)
    assert not StoredPacked.of([])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(CorruptFileError, match="not readable as safetensors"):
        StoredPacked.of([str(tmp_path / "cut.safetensors")])


def test_what_may_be_packed_is_named_without_weights(folder):
    config = AutoConfig.from_pretrained(folder.parent / "floats")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = packable_names(model, NF4Config())
    assert len(names) == 14
    assert NAME in names
    assert packable_names(model, NF4Config(quantize_head=True)) == names | {"lm_head.weight"}
    quantize_model(model, NF4Config())
    assert {f"{name}.weight" for name in packed_modules(model)} == names


def load_floats(folder):
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=NF4Config())


def test_layers_that_the_files_do_not_have_stay_in_floats(folder):
    floats = folder.parent / "floats"
    change(floats, lambda tensors: tensors.pop(NAME))
    model = load_floats(floats)
    assert isinstance(model.model.layers[1].mlp.up_proj, nn.Linear)
    assert len(packed_modules(model)) == 13


def test_files_without_any_of_the_weights_are_refused(folder):
    floats = folder.parent / "floats"

    def rename(tensors):
        for name in [name for name in tensors if "_proj" in name]:
            tensors[name.replace(".weight", ".qweight")] = tensors.pop(name)

    change(floats, rename)
    with pytest.raises(QuantError, match="none of the weights"):
        load_floats(floats)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_in_other_formats_are_refused(folder, dtype):
    floats = folder.parent / "floats"

    def cast(tensors):
        tensors[NAME] = tensors[NAME].to(dtype)

    change(floats, cast)
    with pytest.raises(QuantError, match="format that ince does not read") as caught:
        load_floats(floats)
    assert NAME in caught.value.where
