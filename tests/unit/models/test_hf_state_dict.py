"""A packed model's tensors for files, and where they lie when it is offloaded."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from ince import NF4Config
from ince.errors import QuantError
from ince.formats.bitsandbytes import from_bitsandbytes, read_packed
from ince.models.hf_state_dict import keep_offloaded, left_out, packed_state_dict, unpack
from ince.quant import Experts4bit, packed_modules, packed_weight_name, quantize_model

IDS = torch.tensor([[1, 5, 9, 2], [3, 3, 0, 11]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(params=["llama", "mixtral"])
def model(request):
    torch.manual_seed(0)
    if request.param == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True))
    else:
        made = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    quantize_model(made.eval(), NF4Config(compute_dtype="float32"))
    return made.requires_grad_(False)


def test_the_tensors_are_those_of_the_layout(model):
    tensors = packed_state_dict(model)
    packed = packed_modules(model)
    weights = {packed_weight_name(name, module): module for name, module in packed.items()}
    for name, module in weights.items():
        assert torch.equal(read_packed(name, tensors).packed, module.packed)
        assert tensors[name].data_ptr() == module.packed.data_ptr()
    rest = {name for name in tensors if not any(name.startswith(weight) for weight in weights)}
    assert rest == {name for name, _ in model.named_parameters()}
    name = "model.layers.0.self_attn.q_proj"
    layer = from_bitsandbytes(name, tensors)
    assert torch.equal(layer.packed, packed[name].packed)
    assert (layer.bias is None) == (packed[name].bias is None)


def test_the_layers_in_floats_are_listed(model):
    assert left_out(model) == ("lm_head",)


def test_int4_has_no_such_layout():
    model = nn.Sequential(nn.Linear(8, 8))
    quantize_model(model, NF4Config(quant_type="int4"))
    with pytest.raises(QuantError, match="bitsandbytes has no such"):
        packed_state_dict(model)


@pytest.mark.parametrize("offload_buffers", [True, False])
def test_offloaded_weights_stay_where_they_are_kept(model, offload_buffers):
    logits = model(IDS).logits
    tensors = {name: tensor.clone() for name, tensor in packed_state_dict(model).items()}
    cpu_offload(model, execution_device="cpu", offload_buffers=offload_buffers)
    packed = packed_modules(model)
    keep_offloaded(packed)
    for _ in range(2):
        # Stacks of experts are on the CPU, from where they bring one matrix at a time.
        assert all(m.packed.is_meta != isinstance(m, Experts4bit) for m in packed.values())
        assert torch.equal(model(IDS).logits, logits)
    again = packed_state_dict(model)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].is_meta or torch.equal(again[name], tensor)
    assert not any(again[packed_weight_name(*item)].is_meta for item in packed.items())
    with pytest.raises(QuantError, match="offloaded"):
        unpack(model)


def test_expanding_gives_plain_modules_with_equal_results(model):
    logits = model(IDS).logits
    plain = unpack(copy.deepcopy(model))
    assert packed_modules(plain) == {}
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=1e-5, atol=1e-5)
    assert all(not parameter.requires_grad for parameter in plain.parameters())
    assert packed_modules(model)
    half = unpack(model, torch.float16)
    assert half.model.layers[0].self_attn.q_proj.weight.dtype == torch.float16
