import pytest
import torch

from ince.ops import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_that_of_pytorch_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 40, generator=generator).to(dtype)
    targets = torch.randint(0, 40, (6,), generator=generator)
    leaf = logits.float().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    torch.testing.assert_close(reference.cross_entropy(logits, targets, 0.0), expected)
    (grad,) = torch.autograd.grad(expected.sum(), leaf)
    total = reference.cross_entropy_grad_(logits, targets, 1.0, 0.0, None)
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(logits, grad.to(dtype))
