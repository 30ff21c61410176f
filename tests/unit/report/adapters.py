"""Adapters and their insight, made up: for tests of what is drawn and printed of them."""

import torch

from ince.formats.adapter import write_adapter
from ince.lora.insight import inspect_adapter

P = "base_model.model."
KINDS = ("self_attn.q_proj", "mlp.down_proj")


def make_insight(folder, *, seed=0, r=4, num_layers=3, kinds=KINDS, zero=False, extra=(), **config):
    """An adapter in `folder`, inspected."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    names = [f"model.layers.{n}.{kind}" for n in range(num_layers) for kind in kinds]
    for name in [*names, *extra]:
        tensors[f"{P}{name}.lora_A.weight"] = torch.randn(r, 12, generator=generator)
        b = torch.randn(10, r, generator=generator)
        tensors[f"{P}{name}.lora_B.weight"] = b * 0 if zero else b
    write_adapter(folder, {"peft_type": "LORA", "r": r, "lora_alpha": 8} | config, tensors)
    return inspect_adapter(folder)
