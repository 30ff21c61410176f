import pytest
import torch
from torch.nn import functional as F
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ince.data import Example, collate, pack_rows, single_rows
from ince.lora import LoraConfig, get_peft_model
from ince.models import packed_row_attention
from ince.train.loss import target_loss

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
    "gemma3 with both kinds of layers": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        )
    ),
}


def examples(num=9):
    """Examples with one beginning, some of them with a second one in common."""
    torch.manual_seed(3)
    system = tuple(torch.randint(3, 97, (6,)).tolist())
    task = tuple(torch.randint(3, 97, (4,)).tolist())
    made = []
    for i in range(num):
        own = tuple(torch.randint(3, 97, (3 + i % 4,)).tolist())
        reply = (*torch.randint(3, 97, (1 + i % 5,)).tolist(), 2)
        prompt = (*system, *(task if i % 2 else ()), *own)
        targets = (*[False] * len(prompt), *[True] * len(reply))
        made.append(Example((*prompt, *reply), targets, str(i)))
    return made


def plain_loss(model, example):
    """By the definition: alone, all logits, transformers' own mask."""
    ids = torch.tensor([example.input_ids])
    logits = model(input_ids=ids).logits[0, :-1].float()
    targets = ids[0, 1:].masked_fill(~torch.tensor(example.targets[1:]), -100)
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_packed_loss_and_gradients_equal_single_ones(name, packing, dtype):
    """Shared beginnings, windows by position and block masks change nothing but rounding."""
    torch.manual_seed(1)
    base = MODELS[name]().to(dtype).eval()
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model = model.to(dtype)
    every = examples()
    rows = (
        pack_rows(every, range(len(every)), 48)
        if packing
        else single_rows(every, range(len(every)))
    )
    if packing:
        assert sum(row.num_tokens for row in rows) < sum(e.num_tokens for e in every)
    batch = collate(rows, 0)
    expected = sum(plain_loss(model, example) for example in every)
    with packed_row_attention(model.get_base_model()):
        loss = target_loss(model, batch)
        found = gradients(model, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = gradients(model, expected)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        atol = 1e-6 if dtype == torch.float64 else 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("trains", [True, False])
def test_no_logits_are_made_where_nothing_is_learnt(trains):
    model = MODELS["llama"]().eval().requires_grad_(trains)
    batch = collate(pack_rows(examples(), range(9), 64), 0)
    target_loss(model, batch)  # the first one looks what the output layer is
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    target_loss(model, batch)
    handle.remove()
    # A frozen layer is multiplied by the loss itself, part by part.
    assert seen == ([(1, batch.num_targets, 97)] if trains else [(1, 1, 1)])
    assert not model.lm_head._forward_pre_hooks
    assert "forward" not in vars(model.lm_head)


def test_the_hook_is_gone_when_the_forward_raises():
    model = MODELS["llama"]().eval()
    batch = collate(examples(2), 0)
    broken = batch.to("cpu")
    broken.input_ids[0, 0] = 10_000
    with pytest.raises(IndexError):
        target_loss(model, broken)
    assert not model.lm_head._forward_pre_hooks
    assert "forward" not in vars(model.lm_head)
