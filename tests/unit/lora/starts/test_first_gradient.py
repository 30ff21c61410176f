"""First gradients: those that autograd would give, of weights that stay frozen."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ince.errors import AdapterError, TrainingError
from ince.lora.starts.first_gradient import first_gradients
from ince.quant import NF4Config, quantize_model


class Net(nn.Module):
    def __init__(self, checkpointed=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 10, bias=False)
        self.third = nn.Linear(10, 4)
        self.checkpointed = checkpointed

    def forward(self, x):
        if self.checkpointed is None:
            x = self.second(self.first(x).relu_())
        else:
            hidden = self.first(x)
            x = checkpoint(self.second, hidden.relu(), use_reentrant=self.checkpointed)
        return self.third(x).square().sum()


X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2))


def gathered(net, names=("first", "second"), step=None, data=X):
    def run():
        for x in data:
            net(x).backward()

    layers = {name: (net.get_submodule(name), 10) for name in names}
    return first_gradients(layers, net, step or run)


def expected(net):
    for x in X:
        net(x).backward()
    return {name: net.get_submodule(name).weight.grad for name in ("first", "second")}


@pytest.mark.parametrize("checkpointed", [None, False, True])
def test_they_are_autograds(checkpointed):
    net = Net(checkpointed).requires_grad_(False).eval()
    found = gathered(net)
    for name, gradient in expected(Net()).items():
        it = found[name]
        torch.testing.assert_close((it.u_OQ * it.s_Q) @ it.v_QD, gradient, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_model_is_as_it_was():
    net = Net()
    net.first.eval()
    net.third.weight.requires_grad_(False)
    gathered(net)
    assert [m.training for m in (net, net.first, net.second)] == [True, False, True]
    assert [p.requires_grad for p in net.third.parameters()] == [False, True]
    assert net.first.weight.requires_grad
    assert not any(module._forward_hooks for module in net.modules())


def test_weights_in_4_bits_have_one_too():
    net = Net()
    quantize_model(net, NF4Config(compute_dtype="float32", skip_modules=("third",)))
    assert gathered(net)["first"].u_OQ.shape[0] == 16


def test_what_went_wrong_is_said_and_the_model_is_as_it_was():
    net = Net()
    with pytest.raises(AdapterError, match="2 of 2 layers got no gradient"):
        gathered(net, step=lambda: net(X[0]))
    with pytest.raises(TrainingError, match="not finite"):
        gathered(net, data=X * float("nan"))
    with pytest.raises(ZeroDivisionError):
        gathered(net, step=lambda: 1 / 0)
    assert net.training
    assert net.first.weight.requires_grad
    assert not any(module._forward_hooks for module in net.modules())
