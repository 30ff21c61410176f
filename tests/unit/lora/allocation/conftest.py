"""A small model with an AdaLoRA adapter, and a step of its training."""

import pytest
import torch
from torch import nn

from ince.lora import AdaLoraConfig, inject


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.fixture
def make():
    def make(**values):
        settings = {
            "init_r": 4,
            "target_r": 1,
            "total_step": 6,
            "tfinal": 2,
            "target_modules": ["first", "second"],
            "lora_alpha": 1,
            "init_lora_weights": False,
        }
        model = Small()
        return model, inject(model, AdaLoraConfig(**(settings | values)))

    return make


@pytest.fixture
def descend():
    """One step, gradients still there."""

    def descend(model, seed, lr=0.001):
        generator = torch.Generator().manual_seed(seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        model(torch.randn(5, 6, generator=generator)).square().mean().backward()
        torch.optim.SGD(parameters, lr=lr).step()

    return descend
