import pytest
import torch
from torch import nn

from ince.errors import CorruptFileError
from ince.optim import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)


def parameters():
    torch.manual_seed(0)
    return {"b": nn.Parameter(torch.randn(3, 2)), "a": nn.Parameter(torch.randn(4))}


def make(named):
    return build_optimizer(named, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)


def advance(named, optimizer, num_steps):
    for step in range(num_steps):
        loss = sum(((p - step) ** 3).sum() for p in named.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_saved_state_goes_on_to_the_bit():
    straight = parameters()
    advance(straight, make(straight), 3)
    first = parameters()
    optimizer = make(first)
    advance(first, optimizer, 3)
    state = optimizer_state(optimizer, first)
    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    resumed = make(second)
    load_optimizer_state(resumed, second, state)
    advance(first, optimizer, 2)
    advance(second, resumed, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["a"], straight["a"])


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_a_state_of_other_parameters_is_refused(change):
    named = parameters()
    optimizer = make(named)
    advance(named, optimizer, 1)
    state = optimizer_state(optimizer, named)
    if change == "missing":
        del state["a.exp_avg"]
    elif change == "surplus":
        state["c.exp_avg"] = torch.zeros(1)
    else:
        state["a.exp_avg"] = torch.zeros(5)
    with pytest.raises(CorruptFileError, match="optimizer moment"):
        load_optimizer_state(make(named), named, state)


def quick(named, ratio=10.0):
    return build_optimizer(
        named, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, lr_ratios={"a": ratio}
    )


def test_a_ratio_multiplies_the_rate_of_its_parameter():
    named, plain = parameters(), parameters()
    optimizer, other = quick(named), make(plain)
    for each in (optimizer, other):
        set_learning_rate(each, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 5.0}
    assert {group["lr"] for group in other.param_groups} == {0.5}
    advance(named, optimizer, 1)
    advance(plain, other, 1)
    assert torch.equal(named["b"], plain["b"])
    start = parameters()["a"]
    torch.testing.assert_close(named["a"] - start, 10 * (plain["a"] - start))


def test_a_state_with_ratios_goes_on_to_the_bit():
    first = parameters()
    optimizer = quick(first)
    advance(first, optimizer, 3)
    state = optimizer_state(optimizer, first)
    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    resumed = quick(second)
    load_optimizer_state(resumed, second, state)
    advance(first, optimizer, 2)
    advance(second, resumed, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
