"""Checkpoints in bitsandbytes' layout cross over in both directions, against bitsandbytes itself.

Sizes are multiples of 64: elsewhere its CPU kernels are wrong. Codes are compared before any
forward, the first of which packs its weights another way, in place.
"""

import copy
import json

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from bitsandbytes.nn.parametrize import (
    replace_parameter_4bit,
    replace_parameter_4bit_prequantized,
)
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from ince import Linear4bit, NF4Config
from ince.errors import QuantError
from ince.formats.bitsandbytes import (
    PackedWeight,
    from_bitsandbytes,
    packed_names,
    read_packed,
    to_bitsandbytes,
    write_packed,
)
from ince.formats.bitsandbytes_config import config_from_bitsandbytes, config_to_bitsandbytes
from ince.quant import Experts4bit

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
FORMATS = [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)]


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A folder with a tiny model in bfloat16, some of its layers with biases."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    folder = tmp_path_factory.mktemp("floats")
    model.save_pretrained(folder)
    return folder


def theirs_of(quant_type, double_quant, **changes):
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype="bfloat16",
        **changes,
    )


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def load_packed(folder, **settings):
    config = AutoConfig.from_pretrained(folder, quantization_config=NF4Config(**settings))
    return load(folder, config=config)


def layers(model, kind):
    return {name: each for name, each in model.named_modules() if isinstance(each, kind)}


def assert_equal_codes(ours, theirs):
    theirs_4bit = layers(theirs, bnb.nn.Linear4bit)
    ours_4bit = layers(ours, Linear4bit)
    assert ours_4bit.keys() == theirs_4bit.keys()
    assert len(ours_4bit) == 14
    for name, layer in ours_4bit.items():
        weight = theirs_4bit[name].weight
        state = weight.quant_state
        assert torch.equal(layer.packed.flatten(), weight.data.flatten().view(torch.uint8)), name
        assert torch.equal(layer.absmax, state.absmax), name
        if state.nested:
            assert torch.equal(layer.nested_absmax, state.state2.absmax), name
            assert torch.equal(layer.nested_offset, state.offset), name
        assert layer.config.quant_type == state.quant_type
        bias = theirs_4bit[name].bias
        assert (layer.bias is None) == (bias is None)
        assert bias is None or torch.equal(layer.bias, bias)


@torch.no_grad()
def assert_equal_logits(ours, theirs):
    # Sums in another order, rounded to bfloat16 at each layer.
    a, b = ours(IDS).logits.float(), theirs(IDS).logits.float()
    assert b.abs().max() > 0.3
    torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(b.abs().max()))


# ------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize(("quant_type", "double_quant"), FORMATS)
def test_both_pack_a_model_alike_while_loading_it(floats, quant_type, double_quant):
    ours = load(
        floats, quantization_config=NF4Config(quant_type=quant_type, double_quant=double_quant)
    )
    theirs = load(floats, quantization_config=theirs_of(quant_type, double_quant))
    assert_equal_codes(ours, theirs)
    assert_equal_logits(ours, theirs)


@pytest.mark.parametrize(("quant_type", "double_quant"), FORMATS)
def test_they_read_ours(floats, tmp_path, quant_type, double_quant):
    ours = load(
        floats, quantization_config=NF4Config(quant_type=quant_type, double_quant=double_quant)
    )
    ours.save_pretrained(tmp_path)
    theirs = load(tmp_path)
    assert_equal_codes(ours, theirs)
    assert_equal_logits(ours, theirs)


@pytest.mark.parametrize(("quant_type", "double_quant"), FORMATS)
def test_we_read_theirs(floats, tmp_path, quant_type, double_quant):
    theirs = load(floats, quantization_config=theirs_of(quant_type, double_quant))
    theirs.save_pretrained(tmp_path)
    ours = load_packed(tmp_path)
    assert_equal_codes(ours, theirs)
    assert_equal_logits(ours, theirs)


def test_searched_scales_are_read_too(floats, tmp_path):
    ours = load(floats, quantization_config=NF4Config(scale_search=True))
    plain = load(floats, quantization_config=NF4Config())
    name = "model.layers.0.mlp.up_proj.absmax"
    assert not torch.equal(ours.get_buffer(name), plain.get_buffer(name))
    ours.save_pretrained(tmp_path)
    theirs = load(tmp_path)
    assert_equal_codes(ours, theirs)
    assert_equal_logits(ours, theirs)


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_we_read_theirs_stored_as_another_type(floats, tmp_path, storage):
    config = theirs_of("nf4", True, bnb_4bit_quant_storage=storage)
    theirs = load(floats, quantization_config=config)
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert str(stored.dtype) == f"torch.{storage}"
    assert_equal_codes(load_packed(tmp_path), theirs)


def test_they_leave_out_the_layers_that_we_left_out(floats, tmp_path):
    config = NF4Config(skip_modules=("down_proj", "model.layers.1.self_attn"))
    ours = load(floats, quantization_config=config)
    ours.save_pretrained(tmp_path)
    theirs = load(tmp_path)
    assert layers(ours, Linear4bit).keys() == layers(theirs, bnb.nn.Linear4bit).keys()
    assert_equal_logits(ours, theirs)


def test_they_read_a_packed_head(floats, tmp_path):
    ours = load(floats, quantization_config=NF4Config(quantize_head=True))
    assert isinstance(ours.lm_head, Linear4bit)
    ours.save_pretrained(tmp_path)
    theirs = load(tmp_path)
    assert isinstance(theirs.lm_head, bnb.nn.Linear4bit)
    assert torch.equal(ours.lm_head.packed, theirs.lm_head.weight.data)
    assert_equal_logits(ours, theirs)


def test_their_shards_are_read(floats, tmp_path):
    theirs = load(floats, quantization_config=theirs_of("nf4", True))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal_codes(load_packed(tmp_path), theirs)


def test_the_layout_is_theirs_to_the_byte(floats, tmp_path):
    load(floats, quantization_config=NF4Config()).save_pretrained(tmp_path / "ours")
    load(floats, quantization_config=theirs_of("nf4", True)).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        if ".quant_state." in name:
            assert read_json(ours[name]) == read_json(tensor), name
        else:
            assert torch.equal(ours[name], tensor), name
    a, b = (
        json.loads((tmp_path / who / "config.json").read_text())["quantization_config"]
        for who in ("ours", "theirs")
    )
    # They find the head by themselves; we name what we left out.
    assert a | {"llm_int8_skip_modules": None} == {k: v for k, v in b.items() if k[0] != "_"}


def read_json(text):
    return json.loads(bytes(text.tolist()))


# --------------------------------------------------------------------------------- one layer


@pytest.mark.parametrize(("quant_type", "double_quant"), FORMATS)
@pytest.mark.parametrize("shape", [(64, 64), (5, 3), (33, 67), (300, 65)])
@pytest.mark.parametrize("blocksize", [32, 64, 512])
def test_a_layer_crosses_over(quant_type, double_quant, shape, blocksize):
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape)
    packed, state = quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=double_quant, quant_type=quant_type
    )
    stored = {"q.weight": packed}
    stored |= {f"q.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    layer = from_bitsandbytes("q", stored, compute_dtype="float32")
    again = to_bitsandbytes("q", layer)
    assert again.keys() == stored.keys()
    for name, tensor in stored.items():
        if ".quant_state." not in name:
            assert torch.equal(again[name], tensor), name
    back = QuantState.from_dict(
        {k.removeprefix("q.weight."): v for k, v in again.items() if k != "q.weight"},
        device=torch.device("cpu"),
    )
    assert back.shape == state.shape
    assert back.blocksize == state.blocksize
    assert not double_quant or torch.equal(back.offset, state.offset)


# ------------------------------------------------------------------------------------ configs


def test_the_defaults_are_theirs():
    stored = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    assert config_from_bitsandbytes(stored) == config_from_bitsandbytes({"load_in_4bit": True})


@pytest.mark.parametrize(("quant_type", "double_quant"), FORMATS)
def test_configs_mean_the_same(quant_type, double_quant):
    theirs = theirs_of(quant_type, double_quant, llm_int8_skip_modules=["lm_head"])
    config = config_from_bitsandbytes(theirs.to_dict())
    assert config == NF4Config(
        quant_type=quant_type, double_quant=double_quant, skip_modules=("lm_head",)
    )
    assert BitsAndBytesConfig.from_dict(config_to_bitsandbytes(config)).to_dict() == (
        theirs.to_dict()
    )


def test_8_bits_are_refused():
    with pytest.raises(QuantError, match="8 bits"):
        config_from_bitsandbytes(BitsAndBytesConfig(load_in_8bit=True).to_dict())


# ----------------------------------------------------------------------------------- experts


class Stack(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.down_proj = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize(("quant_type", "double_quant"), FORMATS)
def test_a_stack_of_experts_lies_as_their_parameter(quant_type, double_quant):
    torch.manual_seed(1)
    weight = torch.randn(3, 64, 128)
    theirs = Stack(weight.clone())
    replace_parameter_4bit(theirs, "down_proj", double_quant, quant_type, 64)
    stored = theirs.state_dict()
    config = NF4Config(quant_type=quant_type, double_quant=double_quant, compute_dtype="float32")
    ours = Experts4bit.from_weight(weight, config=config)
    read = read_packed("down_proj", stored)
    assert read.shape == (3, 64, 128)
    assert torch.equal(ours.packed, read.packed)
    assert torch.equal(ours.absmax, read.absmax)
    written = write_packed(
        "down_proj",
        PackedWeight(**ours.parts(), blocksize=64, quant_type=quant_type, shape=read.shape,
                     dtype="float32", **({} if double_quant else NOT_NESTED)),
    )  # fmt: skip
    assert written.keys() == stored.keys()
    assert list(packed_names(written)) == ["down_proj"]
    again = Stack(written["down_proj"])
    state = {k.removeprefix("down_proj."): v for k, v in written.items() if k != "down_proj"}
    replace_parameter_4bit_prequantized(again, "down_proj", state, torch.device("cpu"))
    assert torch.equal(again.down_proj, theirs.down_proj)
    torch.testing.assert_close(ours.dequantize(), theirs.down_proj, rtol=1e-6, atol=1e-7)


NOT_NESTED = {"nested_absmax": None, "nested_offset": None}


def test_a_forward_changes_none_of_our_codes(floats):
    ours = load(floats, quantization_config=NF4Config())
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        ours(IDS)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())
