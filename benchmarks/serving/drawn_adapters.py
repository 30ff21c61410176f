"""Adapters of random weights in PEFT's format, as a house with many customers would have them."""

import torch
from torch import nn

from ince.formats.adapter import CONFIG_FILE, write_adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
# The first one is as heavy as they are on average, so that one adapter and many compare.
KINDS = ((8, ALL_LINEAR), (16, ATTENTION), (16, ALL_LINEAR), (8, ATTENTION))
SMALL = ((4, ("q_proj", "v_proj")),)


def is_rslora(number):
    return number % 8 == 5


def is_dora(number):
    return number % 16 == 7


def write_adapters(folder, model, numbers, kinds=KINDS, dtype=torch.float32, *, plain=False):
    """Write the adapters with these numbers, unless they are there; number → folder.

    Args:
        kinds: (rank, targets), in turn.
        plain: neither rsLoRA nor DoRA.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ALL_LINEAR
    }
    norms = {name: module.weight.float().norm(dim=1) for name, module in layers.items()}
    found = {}
    for number in numbers:
        rank, targets = kinds[number % len(kinds)]
        found[number] = folder / f"adapter-{number:04d}"
        if (found[number] / CONFIG_FILE).is_file():
            continue
        rslora, dora = not plain and is_rslora(number), not plain and is_dora(number)
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, module in layers.items():
            if name.rpartition(".")[2] not in targets:
                continue
            stem = f"base_model.model.{name}."
            shape_a, shape_b = (rank, module.in_features), (module.out_features, rank)
            a = torch.randn(shape_a, generator=generator) * module.in_features**-0.5
            b = torch.randn(shape_b, generator=generator) * 0.02 * rank**-0.5
            tensors[stem + "lora_A.weight"] = a.to(dtype)
            tensors[stem + "lora_B.weight"] = b.to(dtype)
            if dora:
                noise = torch.randn(module.out_features, generator=generator)
                tensors[stem + "lora_magnitude_vector"] = (norms[name] * (1 + 0.01 * noise)).to(
                    dtype
                )
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(targets),
            "use_rslora": rslora,
            "use_dora": dora,
            "base_model_name_or_path": None,
        }
        write_adapter(found[number], config=config, tensors=tensors)
    return found
