"""Parameters of many shapes with gradients that are drawn, for optimizers that page."""

import pytest
import torch
from torch import nn

from ince.optim.pages import carrier

SHAPES = ((120, 100), (3,), (), (0,), (2000,), (257,), (16, 8, 3, 3))


@pytest.fixture
def some_parameters():
    """A function that makes the same parameters each time, one of them transposed."""

    def make(dtype=torch.float32, shapes=SHAPES):
        drawn = torch.Generator().manual_seed(0)
        made = [torch.randn(shape, generator=drawn).to(dtype) for shape in shapes]
        made.append(torch.randn(30, 20, generator=drawn).to(dtype).t())
        return [nn.Parameter(each) for each in made]

    return make


@pytest.fixture
def train():
    """A function that takes steps `first` to `last` with gradients that depend on the step."""

    def run(optimizer, parameters, last, first=0, leave_out=lambda step, index: False):
        for step in range(first, last):
            drawn = torch.Generator().manual_seed(step)
            for index, parameter in enumerate(parameters):
                gradient = torch.randn(parameter.shape, generator=drawn).to(parameter.dtype)
                parameter.grad = None if leave_out(step, index) else gradient
            optimizer.step()

    return run


@pytest.fixture
def other_device(monkeypatch):
    """An accelerator that is not one: a second pool of memory, to and from which is copied."""
    made = []

    class Fake(carrier.CopyCarrier):
        def __init__(self, device, page_bytes):
            super().__init__(device)
            self.num_up = self.num_down = 0
            made.append(self)

        def up(self, host):
            self.num_up += 1
            return super().up(host)

        def down(self, staged, host):
            self.num_down += 1
            return super().down(staged, host)

    monkeypatch.setattr("ince.optim.paged.carrier_of", Fake)
    return made
