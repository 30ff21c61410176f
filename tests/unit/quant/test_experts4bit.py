"""Fused experts in four bits, in models of transformers."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ince import NF4Config
from ince.errors import QuantError
from ince.quant import (
    Experts4bit,
    num_weights,
    packed_modules,
    packed_weight_name,
    quantizable_stacks,
    quantize_model,
    weight_bytes,
)
from ince.quant.experts4bit import is_fused_experts, put_experts, stack_names, take_experts

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
    "qwen2": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SIZES, moe_intermediate_size=12, num_experts=4, shared_expert_intermediate_size=16
        )
    ),
    "qwen3": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=12, num_experts=4, head_dim=8)
    ),
    # (in, out), with biases, and another order of the two halves.
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**SIZES, head_dim=8, num_local_experts=4)),
}
NAMES = ["experts.gate_up_proj", "experts.down_proj"]


def make(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


def packed_and_plain(kind, **settings):
    """A quantized model, and one with the same weights in floats."""
    model = make(kind)
    plain = copy.deepcopy(model)
    quantize_model(model, NF4Config(compute_dtype="float32", **settings))
    for name, module in packed_modules(model).items():
        weight = plain.get_parameter(packed_weight_name(name, module))
        weight.data = module.dequantize(torch.float32)
    return model, plain


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("double_quant", [True, False])
def test_logits_and_gradients_are_those_of_expanded_experts(kind, double_quant):
    model, plain = packed_and_plain(kind, double_quant=double_quant)
    stacks = {name.split("mlp.")[1] for name in packed_modules(model) if "experts." in name}
    assert stacks >= set(NAMES)
    x = plain.get_input_embeddings()(IDS).detach()
    results = []
    for each in (model, plain):
        inputs = x.clone().requires_grad_()
        logits = each(inputs_embeds=inputs).logits
        logits.square().sum().backward()
        results.append((logits.detach(), inputs.grad))
    torch.testing.assert_close(*[logits for logits, _ in results], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*[grad for _, grad in results], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", ["eager", "batched_mm", "grouped_mm"])
def test_the_forward_is_the_one_that_goes_expert_by_expert(asked):
    model, plain = packed_and_plain("mixtral")
    model.set_experts_implementation(asked)
    plain.set_experts_implementation(asked)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    assert model.config._experts_implementation == asked


def test_experts_of_which_none_is_asked_for_are_not_expanded():
    model, _ = packed_and_plain("mixtral")
    stack = model.get_submodule("model.layers.0.mlp.experts.down_proj")
    seen = []
    stack.register_forward_hook(lambda module, args, out: seen.append(int(args[0])))
    with torch.no_grad():
        model(IDS[:1, :1])
    assert len(seen) == 2  # two experts for one token


def test_training_mode_and_casts_change_nothing():
    model, _ = packed_and_plain("mixtral")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    model(IDS)
    model.eval()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(p.requires_grad for e in packed_modules(model).values() for p in e.parameters())
    model.to(torch.float16).to(torch.float32)
    for name in packed_modules(model):
        assert torch.equal(model.get_buffer(f"{name}.packed"), before[f"{name}.packed"])
    assert torch.isfinite(model(IDS).logits).all()


def test_a_state_dict_comes_back_strictly():
    model, _ = packed_and_plain("qwen3")
    other = make("qwen3")
    quantize_model(other, NF4Config(compute_dtype="float32"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(IDS).logits, model(IDS).logits)


def test_what_is_counted_is_what_is_there():
    plain = make("mixtral")
    num_plain = num_weights(plain)
    model, _ = packed_and_plain("mixtral")
    assert num_weights(model) == num_plain
    stack = model.get_submodule("model.layers.0.mlp.experts.gate_up_proj")
    assert stack.num_weights == 4 * 48 * 16
    assert stack.weight_bytes == 4 * 48 * 16 // 2 + 48 + 4 + 4
    assert weight_bytes(model) < weight_bytes(plain)


def test_routers_and_biases_stay_in_floats():
    model, _ = packed_and_plain("gpt-oss")
    left = {name.rpartition("mlp.")[2] for name, _ in model.named_parameters() if "mlp." in name}
    assert left == {
        "router.weight",
        "router.bias",
        "experts.gate_up_proj_bias",
        "experts.down_proj_bias",
    }


def test_skipped_experts_stay_as_they_are():
    model = make("mixtral")
    config = NF4Config(skip_modules=("model.layers.1",))
    assert quantizable_stacks(model, config) == [f"model.layers.0.mlp.{name}" for name in NAMES]
    quantize_model(model, config)
    assert model.get_parameter("model.layers.1.mlp.experts.down_proj").ndim == 3
    assert torch.isfinite(model(IDS).logits).all()


def test_damaged_experts_are_named_and_the_model_is_left_whole():
    model = make("mixtral")
    name = "model.layers.1.mlp.experts.down_proj"
    model.get_parameter(name).data[2, 0, 0] = torch.nan
    with pytest.raises(QuantError, match="not finite") as caught:
        quantize_model(model, NF4Config())
    assert name in caught.value.where
    assert packed_modules(model) == {}


def test_progress_counts_stacks():
    seen = []
    quantize_model(
        make("mixtral"), NF4Config(), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 12) for done in range(13)]


class Whole(nn.Module):
    """Experts that multiply with all of their stack."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 8, 8))
        self.out = nn.Linear(8, 8)


def test_experts_that_do_not_go_one_by_one_are_refused():
    assert not is_fused_experts(Whole())
    with pytest.raises(QuantError, match="neither linear layers") as caught:
        quantize_model(Whole(), NF4Config())
    assert caught.value.where == "up"


def test_experts_can_be_put_back():
    model = make("mixtral")
    experts = model.model.layers[0].mlp.experts
    before = {name: getattr(experts, name).clone() for name in stack_names(experts)}
    config = experts.config
    logits = model(IDS).logits
    # In whichever order they come, they lie as the class declares them.
    for name in reversed(before):
        stack = Experts4bit.from_weight(before[name], config=NF4Config())
        put_experts(experts, name, stack)
    assert [n for n, e in experts.named_children() if isinstance(e, Experts4bit)] == list(before)
    for name, weight in before.items():
        take_experts(experts, name, weight)
    assert experts.config is config
    assert torch.equal(model(IDS).logits, logits)


def test_a_whole_stack_is_never_handed_out():
    stack = Experts4bit.from_weight(torch.randn(3, 4, 64), config=NF4Config())
    for misuse in (
        lambda: stack[torch.tensor([0, 1])],
        lambda: stack[0:2],
        lambda: stack[torch.tensor(True)],
        lambda: torch.nn.functional.linear(torch.randn(2, 64), stack),
        lambda: torch.bmm(torch.randn(3, 2, 4), stack),
    ):
        with pytest.raises(QuantError, match="one by one"):
            misuse()
    with pytest.raises(IndexError):
        stack[3]
    assert torch.equal(stack[-1].dequantize(), stack[2].dequantize())


def test_a_stack_answers_for_its_shape():
    stack = Experts4bit.from_weight(torch.randn(3, 4, 64), config=NF4Config())
    assert stack.shape == (3, 4, 64)
    assert stack.size(1) == 4
    assert stack.dim() == stack.ndim == 3
    assert len(stack) == len(list(stack)) == 3
    assert stack.dtype == torch.bfloat16
    assert stack.is_floating_point()
    assert stack.detach() is stack
    assert "(3, 4, 64)" in repr(stack)
    for shape in ((3, 4), (3, 0, 4)):
        with pytest.raises(QuantError, match="not the shape of a stack"):
            Experts4bit(shape)


def test_scales_of_experts_beyond_256_blocks_are_found():
    torch.manual_seed(0)
    weight = torch.randn(7, 96, 64)  # 96 blocks each: scales of scales are shared by experts
    stack = Experts4bit.from_weight(weight, config=NF4Config(compute_dtype="float32"))
    flat = Experts4bit.from_weight(weight.view(1, 7 * 96, 64), config=stack.config)
    assert torch.equal(stack.dequantize().flatten(), flat.dequantize().flatten())
