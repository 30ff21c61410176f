"""Whatever is kept between forward and backward, gradients are the same."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ince.data import Example, collate
from ince.errors import ConfigError
from ince.lora import LoraConfig, get_peft_model
from ince.models import fused
from ince.train.activations import Offloaded, kept_activations
from ince.train.loss import target_loss


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def batch():
    torch.manual_seed(2)
    ids = [tuple(torch.randint(3, 97, (12 + i,)).tolist()) for i in range(3)]
    return collate([Example(t, (*[False] * 5, *[True] * (len(t) - 5)), "x") for t in ids], 0)


def gradients(model):
    torch.manual_seed(4)
    model.zero_grad()
    loss = target_loss(model, batch())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        target_loss(model, batch())
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, sum(t.numel() for t in saved if not t.is_leaf)


@pytest.mark.parametrize("is_fused", [True, False])
def test_recomputing_gives_the_same_bits_and_keeps_less(model, is_fused):
    if is_fused:
        with fused(model):
            kept, much = gradients(model)
            with kept_activations(model, "recompute"):
                again, little = gradients(model)
    else:
        kept, much = gradients(model)
        with kept_activations(model, "recompute"):
            again, little = gradients(model)
    assert little < much / 2
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


def test_what_waits_elsewhere_comes_back(model):
    kept, _ = gradients(model)
    hooks = Offloaded(torch.device("cpu"), least_bytes=1)
    with kept_activations(model, "recompute"), hooks:
        torch.manual_seed(4)
        model.zero_grad()
        target_loss(model, batch()).backward()
        first = hooks.num_moved
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        target_loss(model, batch()).backward()
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    # From the second forward on, the last one that is saved stays.
    assert hooks.num_moved == 2 * first - 1


def test_a_model_on_a_processor_has_nowhere_to_offload_to(model):
    with pytest.raises(ConfigError, match="use recompute"), kept_activations(model, "offload"):
        pass


def test_a_model_that_cannot_recompute_is_refused(model):
    model.get_base_model().supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="LlamaForCausalLM"), kept_activations(model, "recompute"):
        pass
