"""Evaluation for a moment: modes and expanded weights go back as they were."""

import pytest
import torch
from torch import nn

from ince.infer import evaluating
from ince.quant import NF4Config, quantize_model


def mixed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64))
    model.train()
    model[2].eval()
    return model


def test_every_part_gets_its_mode_back() -> None:
    model = mixed()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, True, False]


def test_an_exception_puts_modes_back_too() -> None:
    model = mixed()
    with pytest.raises(KeyError), evaluating(model, expand=True):
        raise KeyError
    assert model.training


def test_expanding_changes_results_by_rounding_and_leaves_nothing() -> None:
    model = mixed()
    quantize_model(model, NF4Config())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(3, 64)
    with evaluating(model):
        packed = model(inputs)
    with evaluating(model, expand=True):
        # Sums are taken in another order, in bfloat16.
        torch.testing.assert_close(model(inputs), packed, rtol=2e-2, atol=2e-2)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
