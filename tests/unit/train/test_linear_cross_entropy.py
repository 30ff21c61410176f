"""Output layer and loss in one, against their definition."""

import pytest
import torch
from torch.nn import functional as F

from ince.models import OutputHead
from ince.train import linear_cross_entropy as module
from ince.train.linear_cross_entropy import linear_cross_entropy


def case(num_rows, dtype=torch.float32, bias=False):
    torch.manual_seed(num_rows)
    hidden = torch.randn(num_rows, 16).to(dtype).requires_grad_()
    weight = torch.randn(211, 16).to(dtype)
    offset = torch.randn(211).to(dtype) if bias else None
    return hidden, weight, offset, torch.randint(0, 211, (num_rows,))


def definition(hidden, weight, bias, targets, softcap):
    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 16, 17, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_the_definition(monkeypatch, num_rows, bias, softcap, dtype):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)  # parts of the fewest rows
    hidden, weight, offset, targets = case(num_rows, dtype, bias)
    head = OutputHead(lambda: weight, offset, softcap)
    loss = linear_cross_entropy(hidden, head, targets)
    (found,) = torch.autograd.grad(loss * 0.5, hidden)
    exact = definition(hidden, weight, offset, targets, softcap)
    (wanted,) = torch.autograd.grad(exact * 0.5, hidden)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=bound)
    assert found.dtype == dtype
    scale = wanted.double().abs().max()
    assert float((found.double() - wanted.double()).abs().max() / scale) < bound


def test_without_a_gradient_nothing_is_kept():
    hidden, weight, _, targets = case(20)
    head = OutputHead(lambda: weight, None, 0.0)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, head, targets)
    assert loss.grad_fn is None
    assert loss.item() == pytest.approx(definition(hidden, weight, None, targets, 0).item())


def test_no_logits_outlive_the_forward():
    hidden, weight, _, targets = case(40)
    loss = linear_cross_entropy(hidden, OutputHead(lambda: weight, None, 0.0), targets)
    assert [tuple(t.shape) for t in loss.grad_fn.saved_tensors] == [(40, 16)]


def test_logits_that_are_not_finite_give_a_loss_that_is_not():
    hidden, weight, _, targets = case(4)
    with torch.no_grad():
        hidden[2, 0] = float("nan")
    loss = linear_cross_entropy(hidden, OutputHead(lambda: weight, None, 0.0), targets)
    assert not torch.isfinite(loss)
