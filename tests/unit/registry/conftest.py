"""Adapters of a few numbers, and a registry to put them in."""

import pytest
import torch

from ince.formats.adapter import write_adapter
from ince.lora import LoraConfig
from ince.registry import Registry

BASE = "b" * 64


@pytest.fixture
def write(tmp_path):
    """A function that writes the adapter of a seed: always the same bytes."""

    def make(seed: int, base_digest=BASE, **options):
        torch.manual_seed(seed)
        tensors = {
            "base_model.model.q_proj.lora_A.weight": torch.randn(2, 8),
            "base_model.model.q_proj.lora_B.weight": torch.randn(8, 2),
        }
        config = LoraConfig(r=2, target_modules=["q_proj"], **options).to_peft_dict()
        folder = tmp_path / f"adapter-{seed}"
        write_adapter(folder, config, tensors, base_digest=base_digest)
        return folder

    return make


@pytest.fixture
def registry(tmp_path):
    with Registry(tmp_path / "registry", create=True, actor="ada") as opened:
        yield opened
        assert opened.verify().problems == ()
