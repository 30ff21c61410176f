"""Adapters over fused experts in four bits: as over the same experts in floats."""

import copy

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import ince
from ince import NF4Config
from ince.errors import AdapterError
from ince.lora.merge import merged_state_dict
from ince.quant import packed_modules, packed_weight_name, quantize_model

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen3": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=12, num_experts=4, head_dim=8)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**SIZES, head_dim=8, num_local_experts=4)),
}
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
ON_ATTENTION = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
ON_EXPERTS = ON_ATTENTION | {"target_parameters": PARAMETERS}


def make(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


def pair(kind, compute_dtype="float32"):
    """A packed model, and one with the same weights in floats."""
    packed = make(kind)
    plain = copy.deepcopy(packed)
    quantize_model(packed, NF4Config(compute_dtype=compute_dtype))
    for name, module in packed_modules(packed).items():
        weight = plain.get_parameter(packed_weight_name(name, module))
        weight.data = module.dequantize(torch.float32)
    plain.set_experts_implementation("eager")
    return packed, plain


def adapted(model, settings):
    torch.manual_seed(1)
    return ince.get_peft_model(model, ince.LoraConfig(**settings))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("settings", [ON_ATTENTION, ON_EXPERTS], ids=["attention", "experts"])
def test_results_and_gradients_are_those_over_floats(kind, settings):
    packed, plain = (adapted(model, settings) for model in pair(kind))
    logits, expected = packed(IDS).logits, plain(IDS).logits
    close(logits, expected)
    with packed.disable_adapter():
        assert (packed(IDS).logits - logits).abs().max() > 1e-3
    logits.square().sum().backward()
    expected.square().sum().backward()
    grads = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in packed.named_parameters() if p.requires_grad}
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        close(found[name], grad)


@pytest.mark.parametrize("kind", MODELS)
def test_files_cross_over(kind, tmp_path):
    base, other = pair(kind)
    packed = adapted(base, ON_EXPERTS)
    packed.save_pretrained(tmp_path)
    plain = ince.PeftModel.from_pretrained(other, tmp_path)
    close(packed(IDS).logits, plain(IDS).logits)
    again = ince.PeftModel.from_pretrained(pair(kind)[0], tmp_path)
    assert torch.equal(again(IDS).logits, packed(IDS).logits)


def test_all_linear_means_the_experts_of_this_model_too():
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    packed, plain = (adapted(model, settings) for model in pair("mixtral"))
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (packed, plain)]
    assert names[0] == names[1]
    assert any("experts" in name for name in names[0])
    close(packed(IDS).logits, plain(IDS).logits)


def test_inputs_may_be_wider_than_products():
    packed, _ = pair("mixtral", "bfloat16")
    model = adapted(packed, ON_EXPERTS)
    logits = model(IDS).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("settings", [ON_ATTENTION, ON_EXPERTS], ids=["attention", "experts"])
def test_merging_gives_plain_experts(kind, settings):
    packed, plain = (adapted(model, settings) for model in pair(kind))
    before = copy.deepcopy(packed.get_base_model().state_dict())
    merged, expected = packed.merge_and_unload(), plain.merge_and_unload()
    assert merged.state_dict().keys() == expected.state_dict().keys()
    assert packed_modules(merged) == {}
    for name, tensor in expected.state_dict().items():
        close(merged.state_dict()[name].float(), tensor.float())
    streamed = dict(merged_state_dict(packed, torch.float32))
    assert {*streamed} == {name for name, _ in expected.named_parameters()}
    after = packed.get_base_model().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_adapted_experts_are_not_merged_into_4_bits():
    packed, _ = pair("mixtral")
    with pytest.raises(AdapterError, match="experts cannot be merged into 4 bits"):
        ince.merge_into_4bit(adapted(packed, ON_EXPERTS))
    packed, _ = pair("mixtral")
    large = ON_ATTENTION | {"lora_alpha": 64}  # enough to survive
    merged, _ = ince.merge_into_4bit(adapted(packed, large))
    assert len(packed_modules(merged)) == 12


def test_a_rank_that_experts_cannot_have_is_refused():
    packed, _ = pair("mixtral")
    with pytest.raises(ince.InceError, match="rank"):
        adapted(packed, ON_EXPERTS | {"r": 64})
