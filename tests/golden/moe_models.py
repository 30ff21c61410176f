"""Tiny models with fused experts, and what their tests have in common."""

import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
MOE = {**SIZES, "num_experts_per_tok": 2}
QWEN = {**MOE, "moe_intermediate_size": 12, "num_experts": 4}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**MOE, num_local_experts=4))


def qwen3(**changes):
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN, head_dim=8, **changes))


def gpt_oss():
    return GptOssForCausalLM(GptOssConfig(**MOE, head_dim=8, num_local_experts=4))


def base(make):
    """The same model each time, with no weight at 0 or 1."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
