import pytest
import torch

from ince.errors import InputError
from ince.ops import IGNORED, cross_entropy, cross_entropy_grad_

OPS = torch.ops.ince


def drawn(dtype=torch.float32, *, rows=5, classes=33):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, classes, generator=generator) * 3).to(dtype)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    targets[1] = IGNORED
    return logits, targets


def exact(logits, targets, softcap):
    """In float64."""
    z = softcap * torch.tanh(logits / softcap) if softcap else logits
    return torch.nn.functional.cross_entropy(z, targets, reduction="none", ignore_index=IGNORED)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ways_to_the_gradient_are_that_of_float64(dtype, softcap):
    logits, targets = drawn(dtype)
    leaf = logits.double().requires_grad_()
    expected = exact(leaf, targets, softcap)
    weights = torch.linspace(0.5, 2, 5)
    (grad,) = torch.autograd.grad((expected * weights).sum(), leaf)
    ours = logits.clone().requires_grad_()
    losses = cross_entropy(ours, targets, softcap)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=2e-6)
    (found,) = torch.autograd.grad((losses * weights).sum(), ours)
    total = cross_entropy_grad_(logits, targets, 0.25, softcap, weights=weights)
    torch.testing.assert_close(total, (losses * weights).sum())
    close = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    torch.testing.assert_close(found.double(), grad, rtol=close, atol=1e-6)
    torch.testing.assert_close(logits.double(), grad / 4, rtol=close, atol=1e-6)


def test_the_operators_keep_the_rules_of_torch_library():
    logits, targets = drawn(torch.bfloat16)
    weights = torch.ones(5)
    leaf = logits.clone().requires_grad_()
    torch.library.opcheck(OPS.cross_entropy.default, (leaf, targets, 0.0))
    torch.library.opcheck(OPS.cross_entropy_grad_.default, (logits, targets, 1.0, 5.0, weights))
    args = (logits, targets, 0.0, weights)
    torch.library.opcheck(OPS.cross_entropy_input_grad.default, args)


def test_a_second_derivative_is_refused():
    logits, targets = drawn()
    leaf = logits.requires_grad_()
    losses = cross_entropy(leaf, targets).sum()
    (grad,) = torch.autograd.grad(losses, leaf, create_graph=True)
    with pytest.raises(InputError, match="no gradient of its own"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"logits": torch.randn(33)}, "logits are a matrix"),
        ({"logits": torch.randn(5, 33).double()}, "do not know this type"),
        ({"targets": torch.ones(4, dtype=torch.int64)}, "targets does not fit"),
        ({"targets": torch.ones(5, dtype=torch.int32)}, "targets are token ids"),
        ({"targets": torch.full((5,), 33)}, "5 of 5 targets are no entry"),
        ({"targets": torch.full((5,), -1)}, "5 of 5 targets are no entry"),
        ({"softcap": -1.0}, "no such cap"),
        ({"softcap": float("nan")}, "no such cap"),
        ({"weights": torch.ones(4)}, "weights does not fit"),
        ({"weights": torch.ones(5).half()}, "weights have the wrong type"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(changes, what):
    logits, targets = drawn()
    args = {"logits": logits, "targets": targets} | changes
    before = args["logits"].clone()
    with pytest.raises(InputError, match=what):
        cross_entropy_grad_(**args)
    assert torch.equal(args["logits"], before)
