"""The reference is the norm of transformers' models, to the bit."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from ince.ops import reference

KINDS = {
    "llama": (LlamaRMSNorm, 0.0, False),
    "gemma": (Gemma2RMSNorm, 1.0, False),
    "olmo": (Olmo2RMSNorm, 0.0, True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", ["same", torch.float32])
def test_it_is_the_norm_of_a_model(kind, dtype, weight_dtype):
    make, offset, weight_in_float32 = KINDS[kind]
    norm = make(72, eps=1e-5).to(dtype if weight_dtype == "same" else weight_dtype)
    torch.manual_seed(0)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 72).to(dtype)
    expected = norm(x)
    y, rstd = reference.rms_norm(x, norm.weight, 1e-5, offset, weight_in_float32)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    exact = (x.double().square().mean(-1) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd, exact.float())


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_its_gradient_is_that_of_float64(offset):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 72, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(72, dtype=torch.float64)
    dy, residual = torch.randn(2, 3, 5, 72, dtype=torch.float64)
    rstd = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    (x * rstd * (weight + offset)).backward(dy)
    args = (dy.float(), x.detach().float(), weight.float(), rstd.squeeze(-1).float(), offset)
    dx = reference.rms_norm_input_grad(*args)
    torch.testing.assert_close(dx, x.grad.float())
    total = residual.float()
    reference.rms_norm_add_input_grad_(total, *args)
    torch.testing.assert_close(total, (residual + x.grad).float())
