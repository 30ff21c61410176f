import gc
import weakref

import pytest
import torch
from torch import nn

from ince.train.masters import Masters


def model(dtype):
    torch.manual_seed(0)
    return nn.Linear(8, 4).to(dtype)


def backward(held, seed):
    torch.manual_seed(seed)
    held(torch.randn(5, 8, dtype=held.weight.dtype)).square().sum().backward()


def test_what_is_float32_is_its_own_master():
    held = model(torch.float32)
    masters = Masters(dict(held.named_parameters()))
    assert all(masters.parameters[name] is p for name, p in held.named_parameters())


def test_updates_too_small_for_16_bits_add_up():
    held = model(torch.bfloat16)
    start = held.weight.detach().clone()
    masters = Masters(dict(held.named_parameters()))
    step = 2.0**-12
    for _ in range(64):
        with torch.no_grad():
            masters.parameters["weight"].add_(step)
        masters.publish()
    expected = (start.float() + 64 * step).bfloat16()
    assert torch.equal(held.weight, expected)
    assert not torch.equal(held.weight, start)


def test_gradients_of_micro_batches_add_up_in_float32():
    held, alone = model(torch.bfloat16), model(torch.bfloat16)
    masters = Masters(dict(held.named_parameters()))
    expected = torch.zeros(4, 8)
    for seed in range(4):
        backward(held, seed)
        alone.zero_grad()
        backward(alone, seed)
        expected += alone.weight.grad.float()
    assert torch.equal(masters.parameters["weight"].grad, expected)
    assert held.weight.grad is None


def test_the_model_does_not_keep_them():
    held = model(torch.bfloat16)
    masters = Masters(dict(held.named_parameters()))
    gone = weakref.ref(masters.parameters["weight"])
    del masters
    gc.collect()
    assert gone() is None
    backward(held, 0)
    assert held.weight.grad is not None


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_run_in_16_bits_goes_on_to_the_bit(tmp_path, small_run, ema_decay):
    """The checkpoint has the originals, not what the model rounds them to."""

    def base():
        return small_run.base().to(torch.bfloat16).requires_grad_(True)

    settings = {
        "method": "full",
        "lr": 1e-3,
        "max_steps": 5,
        "ema_decay": ema_decay,
        "packing": False,
    }
    whole, _ = small_run(tmp_path / "whole", model=base(), **settings)
    small_run.cut(tmp_path / "cut", 4, model=base(), **settings)
    resumed, _ = small_run(tmp_path / "cut", model=base(), **settings)
    before, after = small_run.trained(whole), small_run.trained(resumed)
    assert all(p.dtype == torch.bfloat16 for p in after.values())
    assert all(torch.equal(before[name], after[name]) for name in before)
