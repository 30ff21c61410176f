"""A fused model computes what it computed before, and is itself again afterwards."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ince.data import Example, collate, pack_rows
from ince.lora import LoraConfig, get_peft_model
from ince.models import fused
from ince.train.loss import target_loss

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Architecture: how to make it, and which of its modules are fused.
ALL = {"attention": 2, "mlp": 2}
MODELS = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), ALL | {"norm": 5}),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)), ALL | {"norm": 5}),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)), ALL | {"norm": 9}),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**SMALL)), ALL | {"norm": 5}),
    "gemma3": (
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **SMALL, head_dim=8, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        ALL | {"norm": 13},
    ),
    "granite": (
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
        ALL | {"norm": 5},
    ),
    "phi3": (lambda: Phi3ForCausalLM(Phi3Config(**SMALL)), {"norm": 5}),
}


def batch():
    torch.manual_seed(3)
    every = []
    for i in range(5):
        ids = tuple(torch.randint(3, 97, (9 + i,)).tolist())
        every.append(Example(ids, (*[False] * 4, *[True] * (5 + i)), str(i)))
    return collate(pack_rows(every, range(5), 32), 0)


def adapted(make, dtype=torch.float32, **options):
    torch.manual_seed(1)
    base = make().to(dtype).requires_grad_(False)
    for module in base.modules():
        if type(module).__name__.endswith("RMSNorm"):
            torch.nn.init.normal_(module.weight, mean=0.5, std=0.2)
    config = LoraConfig(r=4, target_modules="all-linear", **options)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def loss_and_gradients(model):
    torch.manual_seed(5)
    loss = target_loss(model, batch())
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_and_gradients_are_what_they_were(name, dropout):
    make, counts = MODELS[name]
    model = adapted(make, lora_dropout=dropout)
    loss, gradients = loss_and_gradients(model)
    with fused(model) as report:
        found_loss, found = loss_and_gradients(model)
    for kind, count in counts.items():
        of_kind = [n for key, n in report.counts.items() if kind in key.lower()]
        assert sum(of_kind) == count, report
    assert not report.left
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=2e-3, atol=2e-4)


def test_in_16_bits_it_differs_by_rounding():
    model = adapted(MODELS["llama"][0], torch.bfloat16)
    loss, _ = loss_and_gradients(model)
    with fused(model) as report:
        found, _ = loss_and_gradients(model)
    assert sum(report.counts.values()) == 9
    assert found == pytest.approx(loss, rel=2e-2)


def test_afterwards_nothing_is_left_and_no_name_has_changed():
    model = adapted(MODELS["llama"][0])
    names = [name for name, _ in model.named_parameters()]
    with fused(model):
        assert [name for name, _ in model.named_parameters()] == names
        assert model.training
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(IndexError), fused(model):
        model(input_ids=torch.tensor([[10_000]]))
    assert not any("forward" in vars(module) for module in model.modules())


def test_evaluation_inside_is_what_it_is_outside():
    model = adapted(MODELS["llama"][0]).eval()
    with torch.no_grad():
        outside = target_loss(model, batch())
        with fused(model):
            inside = target_loss(model, batch())
    assert inside.item() == pytest.approx(outside.item(), rel=1e-5)


def test_a_block_that_computes_something_else_is_left_alone():
    model = adapted(MODELS["llama"][0])
    kind = type(model.model.model.layers[0].mlp)

    class ScaledMLP(kind):
        def forward(self, x):
            return 1.01 * super().forward(x)

    for layer in model.model.model.layers:
        layer.mlp.__class__ = ScaledMLP
    with fused(model) as report:
        assert report.left == ("ScaledMLP",)
        assert "forward" not in vars(model.model.model.layers[0].mlp)
    assert report.to_dict()["left"] == ["ScaledMLP"]


def test_a_forward_that_somebody_replaced_is_left_alone():
    model = adapted(MODELS["llama"][0])
    norm = model.model.model.norm
    theirs = norm.forward
    norm.forward = lambda x: 2 * theirs(x)
    replaced = norm.forward
    with fused(model) as report:
        assert norm.forward is replaced
    assert report.counts["LlamaRMSNorm"] == 4
    assert norm.forward is replaced
