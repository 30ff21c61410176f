"""The reference is the activation of transformers' models, computed in float32 and rounded once."""

import pytest
import torch
from transformers.activations import ACT2FN

from ince.ops import ACTIVATIONS, reference

NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_product_of_a_models_activation(kind, dtype):
    gate, up = torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(0)) * 3
    gate, up = gate.to(dtype), up.to(dtype)
    expected = ACT2FN[NAMES[kind]](gate.float()) * up.float()
    h = reference.gated_activation(gate, up, kind)
    assert h.dtype == dtype
    torch.testing.assert_close(h, expected.to(dtype), atol=2e-6, rtol=2.0**-7)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_its_gradients_are_those_of_float64(kind):
    gate, up, dh = torch.randn(3, 50, 40, generator=torch.Generator().manual_seed(0)) * 3
    leaves = [tensor.double().requires_grad_() for tensor in (gate, up)]
    h = ACT2FN[NAMES[kind]](leaves[0]) * leaves[1]
    expected = (h, *torch.autograd.grad(h, leaves, dh.double()))
    found = [tensor.clone() for tensor in (dh, gate, up)]
    reference.gated_activation_backward_(*found, kind)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-5)
