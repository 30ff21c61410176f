"""Adapters over a 4-bit base: the same product, gradient and merge as over its expanded weights."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ince.lora import LoraConfig, LoraLayer, PeftModel, get_peft_model, merged_state_dict
from ince.lora.layers.spec import AdapterSpec
from ince.lora.placement.start import start_adapter
from ince.publish import assert_parity, compare_logits, merge_to_folder
from ince.quant import Linear4bit, NF4Config, expanded, quantize_model

IDS = torch.tensor([[1, 5, 9, 2, 7]])
FLOAT32 = NF4Config(compute_dtype="float32")


def pair(config=FLOAT32, dropout=0.0):
    """The same adapter over a 4-bit layer and over a plain layer of its expanded weight."""
    torch.manual_seed(0)
    packed = Linear4bit.from_linear(nn.Linear(64, 48), config)
    plain = nn.Linear(64, 48)
    plain.weight = nn.Parameter(packed.dequantize(), requires_grad=False)
    plain.bias = packed.bias
    layers = []
    for base in (packed, plain.to(packed.compute_dtype)):
        torch.manual_seed(1)
        layer = LoraLayer(base)
        layer.add_adapter("default", AdapterSpec(r=4, alpha=8, scaling=2.0, dropout=dropout))
        start_adapter(layer, "default", LoraConfig(r=4, init_lora_weights=False))
        layer.state.active = ("default",)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_equals_the_expanded_layer_to_the_bit(dtype, dropout):
    results = []
    for layer in pair(NF4Config(compute_dtype=dtype), dropout):
        torch.manual_seed(2)
        x = torch.randn(2, 7, 64, dtype=getattr(torch, dtype)).requires_grad_()
        torch.manual_seed(3)
        y = layer(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(factor.grad for factor in layer.factor_parameters("default"))])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_an_input_wider_than_the_compute_dtype_gives_its_own_dtype_back():
    layer, _ = pair(NF4Config())
    x = torch.randn(3, 64, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    assert all(factor.grad is not None for factor in layer.factor_parameters("default"))


def test_no_expanded_weight_is_kept_for_the_backward_pass():
    layer, _ = pair()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(torch.randn(3, 64, requires_grad=True))
    assert max(tensor.numel() for tensor in saved) < 64 * 48


def llama(config=FLOAT32):
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(sizes).eval()
    quantize_model(model, config)
    return model


LORA = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)


def test_a_4_bit_weight_counts_as_the_weights_it_stands_for():
    plain = LlamaForCausalLM(llama().config)
    wanted = get_peft_model(plain, LORA).get_nb_trainable_parameters()
    assert get_peft_model(llama(), LORA).get_nb_trainable_parameters() == wanted


def test_saved_loaded_merged_and_expanded_agree(tmp_path):
    model = get_peft_model(llama(), LORA)
    packed = {name: b.clone() for name, b in model.named_buffers()}
    model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(llama(), tmp_path / "a")
    assert compare_logits(model, again, [IDS]).max_abs_logit_diff == 0
    with expanded(model):
        assert compare_logits(model, again, [IDS]).max_abs_logit_diff == 0
    merged = model.merge_and_unload()
    assert not any(isinstance(m, Linear4bit | LoraLayer) for m in merged.modules())
    assert_parity(compare_logits(model, merged, [IDS]), 1e-5)
    out = merge_to_folder(model, None, tmp_path / "m", torch.float32)
    loaded = LlamaForCausalLM.from_pretrained(out)
    assert compare_logits(loaded, merged, [IDS]).max_abs_logit_diff == 0
    assert all(torch.equal(b, packed[name]) for name, b in model.named_buffers())


def test_merging_rounds_the_sum_once_and_not_the_base():
    model = get_peft_model(llama(NF4Config()), LORA)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.factor_parameters("default")
    wanted = torch.addmm(layer.base_layer.dequantize(torch.float32), b, a, alpha=8 / 2 / 1)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(dict(merged_state_dict(model))[name], wanted.bfloat16())
    assert model.merge_and_unload().dtype == torch.bfloat16
