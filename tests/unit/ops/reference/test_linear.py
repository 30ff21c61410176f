import pytest
import torch
from torch.nn import functional as F

from ince.ops import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weight_is_expanded_in_the_type_of_the_input_and_multiplied(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    x = torch.randn(5, 96, generator=generator).to(dtype)
    grad = torch.randn(5, 48, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    packed, absmax = reference.quantize_4bit(weight, 64, "nf4", False)
    parts = (packed, absmax, None, None)
    expanded = reference.dequantize_4bit(*parts, 64, (48, 96), dtype, "nf4")
    rest = (64, (48, 96), "nf4")
    y = reference.linear_4bit(x, *parts, bias, *rest)
    assert torch.equal(y, F.linear(x, expanded, bias))
    one = reference.gemv_4bit(x[:1], *parts, None, *rest)
    assert torch.equal(one, F.linear(x[:1], expanded))
    back = reference.linear_4bit_input_grad(grad, *parts, *rest)
    assert torch.equal(back, grad @ expanded)
