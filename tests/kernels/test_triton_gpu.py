"""The GPU backend on a GPU, where there is one; `benchmarks/nf4_gpu.py` checks far more."""

import pytest
import torch

from ince.ops import reference
from ince.ops.triton import status

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPE = (576, 1536)
REST = (64, SHAPE, "nf4")


@pytest.fixture
def weight():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def test_the_kernels_pass_the_proof():
    from ince.ops.triton.proof import difference

    assert difference(torch.device("cuda", 0)) is None
    assert status().backend == "triton"


@pytest.mark.parametrize("num_rows", [1, 5, 700])
def test_products_and_gradients_are_those_of_the_reference(weight, num_rows):
    packed, absmax = torch.ops.ince.quantize_4bit(weight.cuda(), 64, "nf4", False)
    expected = reference.quantize_4bit(weight, 64, "nf4", False)
    assert torch.equal(packed.cpu(), expected[0])
    assert torch.equal(absmax.cpu(), expected[1])
    exact = reference.dequantize_4bit(*expected, None, None, *REST[:2], torch.bfloat16, "nf4")
    x = torch.randn(num_rows, SHAPE[1], dtype=torch.bfloat16, device="cuda", requires_grad=True)
    y = torch.ops.ince.linear_4bit(x, packed, absmax, None, None, None, *REST)
    wanted = x.detach().cpu().double() @ exact.double().T
    assert float((y.cpu().double() - wanted).abs().max()) <= 8e-3 * float(wanted.abs().max())
    y.backward(torch.ones_like(y))
    wanted = exact.double().sum(0).expand(num_rows, -1)
    assert float((x.grad.cpu().double() - wanted).abs().max()) <= 8e-3 * float(wanted.abs().max())


def test_operators_pass_opcheck(weight):
    packed, absmax = torch.ops.ince.quantize_4bit(weight.cuda(), 64, "nf4", False)
    x = torch.randn(3, SHAPE[1], device="cuda", requires_grad=True)
    args = (x, packed, absmax, None, None, None, *REST)
    torch.library.opcheck(torch.ops.ince.linear_4bit.default, args)
