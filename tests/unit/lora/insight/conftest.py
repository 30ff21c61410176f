"""Adapters made of given tensors, in the format of files."""

import pytest
import torch

from ince.formats.adapter import write_adapter

PREFIX = "base_model.model."


def factor_tensors(modules, *, r=4, num_in=12, num_out=10, seed=0, dtype=torch.float32):
    """A and B of every module, by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        a = torch.randn(r, num_in, generator=generator).to(dtype)
        b = torch.randn(num_out, r, generator=generator).to(dtype)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
    return tensors


@pytest.fixture
def make_adapter(tmp_path):
    """Writes an adapter folder: tensors by full name, and what its config says otherwise."""

    def make(tensors, name="adapter", **config):
        folder = tmp_path / name
        write_adapter(folder, {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config, tensors)
        return folder

    return make


@pytest.fixture
def made_factors():
    """`factor_tensors`."""
    return factor_tensors
