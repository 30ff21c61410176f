"""The fused product against the definition: values, and gradients by finite differences."""

import pytest
import torch
from torch import nn

from ince.lora.product import FusedLora, lora_frozen, lora_reference

S = 0.7


def parts(dtype, *, bias=True, rows=(2, 3), d_in=5, d_out=4, r=2):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = nn.Linear(d_in, d_out, bias=bias).to(dtype).requires_grad_(False)
    base.weight.copy_(draw(d_out, d_in))
    factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    x = draw(*rows, d_in).to(dtype).requires_grad_()
    a = draw(r, d_in).to(factor_dtype).requires_grad_()
    b = draw(d_out, r).to(factor_dtype).requires_grad_()
    return base, x, a, b


def fused(x, a, b, base, p=0.0):
    return FusedLora.apply(x, a, b, base, lambda: base.weight, S, p)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_gradcheck(bias):
    base, x, a, b = parts(torch.float64, bias=bias)
    assert torch.autograd.gradcheck(lambda *t: fused(*t, base), (x, a, b))


@pytest.mark.parametrize("rows", [(6,), (2, 3), (2, 1, 3), (1,), (0,)])
def test_equals_the_definition_in_float64(rows):
    base, x, a, b = parts(torch.float64, rows=rows)
    expected = lora_reference(x, a, b, base, S, 0.0)
    weights = torch.arange(expected.numel(), dtype=torch.float64).view_as(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), (x, a, b))
    y = fused(x, a, b, base)
    got = torch.autograd.grad((y * weights).sum(), (x, a, b))
    torch.testing.assert_close(y, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", ["x", "a", "b"])
def test_only_the_gradients_asked_for(wanted):
    base, x, a, b = parts(torch.float64)
    tensors = {"x": x, "a": a, "b": b}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    reference = torch.autograd.grad(lora_reference(x, a, b, base, S, 0.0).sum(), tensors[wanted])
    (grad,) = torch.autograd.grad(fused(x, a, b, base).sum(), tensors[wanted])
    torch.testing.assert_close(grad, reference[0])


def test_dropout_is_the_same_mask_both_ways():
    base, x, a, b = parts(torch.float64, rows=(64,))
    torch.manual_seed(3)
    dropped, _ = torch.native_dropout(x, 0.5, train=True)
    expected = base(x) + (dropped @ a.t()) @ (S * b).t()
    wanted = torch.autograd.grad(expected.square().sum(), (x, a, b))
    torch.manual_seed(3)
    y = fused(x, a, b, base, p=0.5)
    got = torch.autograd.grad(y.square().sum(), (x, a, b))
    torch.testing.assert_close(y, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_stays_near_float64_and_gradients_are_float32():
    base, x, a, b = parts(torch.bfloat16, rows=(8, 16), d_in=64, d_out=48, r=8)
    y = fused(x, a, b, base)
    assert y.dtype == torch.bfloat16
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = torch.autograd.grad(y, (x, a, b), g)
    assert [grad.dtype for grad in got] == [torch.bfloat16, torch.float32, torch.float32]
    exact = [t.detach().double().requires_grad_() for t in (x, a, b)]
    wide = nn.Linear(64, 48).double().requires_grad_(False)
    wide.load_state_dict({k: v.double() for k, v in base.state_dict().items()})
    expected = lora_reference(*exact, wide, S, 0.0)
    wanted = torch.autograd.grad(expected, exact, g.double())
    for one, other in zip((y, *got), (expected, *wanted), strict=True):
        assert (one.double() - other).norm() / other.norm() < 0.01


def test_a_gradient_without_memory_of_its_own_is_taken():
    base, x, a, b = parts(torch.float64)
    # sum() hands down an expanded scalar, which cannot be viewed as (N, out).
    wanted = torch.autograd.grad(lora_reference(x, a, b, base, S, 0.0).sum(), (x, a, b))
    got = torch.autograd.grad(fused(x, a, b, base).sum(), (x, a, b))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_frozen_product_equals_the_definition_and_needs_no_gradient():
    base, x, a, b = parts(torch.float32)
    y = lora_frozen(x, a, b, base, S)
    assert not y.requires_grad
    torch.testing.assert_close(y, lora_reference(x, a, b, base, S, 0.0).detach())


def test_saved_tensors_hold_the_input_once_and_no_weight():
    base, x, a, b = parts(torch.float32, rows=(32,), d_in=64, d_out=48, r=4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        fused(x, a, b, base)
    assert sorted(t.numel() for t in saved) == sorted([32 * 64, 4 * 64, 48 * 4, 32 * 4])
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_a_frozen_a_saves_no_activation_as_wide_as_the_input(p):
    base, x, a, b = parts(torch.bfloat16, rows=(64,), d_in=128, d_out=48, r=4)
    a.requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        fused(x, a, b, base, p)
    masks = [t for t in saved if t.dtype == torch.bool]  # which of its values the input's needs
    kept = [t.numel() for t in saved if t.dtype != torch.bool]
    assert sorted(kept) == sorted([4 * 128, 48 * 4, 64 * 4])
    assert [t.numel() for t in masks] == ([64 * 128] if p else [])


def test_a_frozen_a_under_a_constant_input_saves_the_thin_product_alone():
    base, x, a, b = parts(torch.float32, rows=(64,), d_in=128, d_out=48, r=4)
    x.requires_grad_(False)
    a.requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = fused(x, a, b, base, 0.25)
    assert sorted(t.numel() for t in saved) == sorted([48 * 4, 64 * 4])
    (grad,) = torch.autograd.grad(y.sum(), b)
    assert grad.shape == b.shape


def test_a_frozen_a_with_dropout_gives_the_same_gradients_as_a_trained_one():
    base, x, a, b = parts(torch.float64, rows=(64,))
    torch.manual_seed(3)
    wanted = torch.autograd.grad(fused(x, a, b, base, 0.5).square().sum(), (x, b))
    a.requires_grad_(False)
    torch.manual_seed(3)
    got = torch.autograd.grad(fused(x, a, b, base, 0.5).square().sum(), (x, b))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradient_checkpointing_gives_the_same_gradients():
    base, x, a, b = parts(torch.float64)
    wanted = torch.autograd.grad(fused(x, a, b, base).square().sum(), (x, a, b))
    y = torch.utils.checkpoint.checkpoint(lambda t: fused(t, a, b, base), x, use_reentrant=False)
    got = torch.autograd.grad(y.square().sum(), (x, a, b))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
