"""Running a module with other parameters leaves no trace, whatever happens."""

import threading

import pytest
import torch
from torch import nn

from ince.lora.layers.replaced import run_with


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x, fail=False):
        if fail:
            raise RuntimeError("no")
        return x * self.weight


def test_parameters_of_any_depth():
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))
    before = {name: p.clone() for name, p in module.named_parameters()}
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    got = run_with(module, {"1.0.weight": weight}, x)
    wanted = module[0](x) @ weight.t() + module[1][0].bias
    torch.testing.assert_close(got, wanted)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert run_with(module, {}, x).equal(module(x))


def test_gradients_flow_to_what_was_given():
    module, weight = nn.Linear(3, 2).requires_grad_(False), torch.randn(2, 3, requires_grad=True)
    run_with(module, {"weight": weight}, torch.randn(4, 3)).sum().backward()
    assert weight.grad is not None
    assert module.weight.grad is None


def test_nothing_to_undo_when_it_raises():
    module = Failing()
    with pytest.raises(RuntimeError, match="no"):
        run_with(module, {"weight": torch.zeros(2)}, torch.ones(2), fail=True)
    assert module(torch.ones(2)).equal(torch.ones(2))
    assert isinstance(module.weight, nn.Parameter)


def test_attributes_can_be_others():
    module = nn.Embedding(4, 2, padding_idx=3)
    got = run_with(
        module, {"weight": torch.ones(1, 2)}, torch.tensor([0]), attributes={"padding_idx": None}
    )
    assert got.equal(torch.ones(1, 2))
    assert module.padding_idx == 3


def test_a_forward_that_was_put_into_the_module_sees_them_too():
    module = nn.Linear(2, 2)
    plain = module.forward
    module.forward = lambda x: plain(x) + 1
    weight, x = torch.randn(2, 2), torch.randn(3, 2)
    torch.testing.assert_close(
        run_with(module, {"weight": weight}, x), x @ weight.t() + module.bias + 1
    )
    assert isinstance(module.weight, nn.Parameter)


def test_threads_do_not_see_each_other():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, barrier):
            first = self.weight.item()
            barrier.wait(timeout=10)
            return first, self.weight.item()

    module, barrier, results = Slow(), threading.Barrier(2), {}

    def work(value):
        results[value] = run_with(module, {"weight": torch.tensor([value])}, barrier)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1.0: (1.0, 1.0), 2.0: (2.0, 2.0)}


def test_hooks_are_called():
    module, seen = nn.Linear(2, 2), []
    module.register_forward_hook(lambda *_: seen.append(1))
    run_with(module, {"weight": torch.zeros(2, 2)}, torch.ones(1, 2))
    assert seen == [1]
