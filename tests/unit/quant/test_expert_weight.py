"""One matrix of a packed stack: a tensor to those who multiply with it."""

import pytest
import torch
from torch.nn import functional as F

from ince import NF4Config
from ince.quant import Experts4bit
from ince.quant.expert_weight import ExpertWeight

# Of the second, experts begin within a block.
SHAPES = [(3, 16, 12), (3, 5, 7), (2, 1, 64)]


def make(shape, dtype="float32", **settings):
    torch.manual_seed(2)
    config = NF4Config(compute_dtype=dtype, **settings)
    return Experts4bit.from_weight(torch.randn(shape), config=config)


# The width of x is that of the last dimension of what it is multiplied with, as stored or turned.
PRODUCTS = {
    "linear": (lambda x, w, b: F.linear(x, w), 2),
    "with a bias": (F.linear, 2),
    "by keyword": (lambda x, w, b: F.linear(x, weight=w), 2),
    "@": (lambda x, w, b: x @ w, 1),
    "@ T": (lambda x, w, b: x @ w.T, 2),
    "matmul": (lambda x, w, b: torch.matmul(x, w.mT), 2),
    "mm": (lambda x, w, b: torch.mm(x, w.t()), 2),
    "transpose": (lambda x, w, b: x @ w.transpose(0, 1), 2),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_and_gradients_are_those_of_the_matrix(shape, double_quant, product):
    multiply, width = PRODUCTS[product]
    stack = make(shape, double_quant=double_quant)
    dense = stack.dequantize()
    for expert in range(shape[0]):
        x, bias = torch.randn(4, shape[width], requires_grad=True), torch.randn(shape[1])
        y, wanted = multiply(x, stack[expert], bias), multiply(x, dense[expert], bias)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        up = torch.randn_like(y)
        (a,) = torch.autograd.grad(y, x, up)
        (b,) = torch.autograd.grad(wanted, x, up)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_matrix_in_floats_is_kept_for_the_backward_pass(shape):
    stack = make(shape)
    x = torch.randn(4, shape[2], requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.linear(x, stack[1]).sum()
    matrices = [t for t in kept if t.is_floating_point() and t.numel() >= shape[1] * shape[2]]
    assert matrices == []


def test_products_are_in_the_config_s_dtype_and_results_in_the_input_s():
    weight = make((2, 16, 64), dtype="bfloat16")[0]
    assert weight.dtype == torch.bfloat16
    x = torch.randn(3, 64)
    y = F.linear(x, weight)
    assert y.dtype == torch.float32
    assert torch.equal(y, F.linear(x.bfloat16(), weight).float())


def test_it_answers_for_its_shape():
    weight = make((2, 16, 12))[0]
    assert isinstance(weight, ExpertWeight)
    assert weight.shape == (16, 12)
    assert weight.T.shape == (12, 16)
    assert weight.size(0) == 16
    assert weight.size() == (16, 12)
    assert weight.dim() == weight.ndim == 2
    assert len(weight) == 16
    assert weight.device.type == "cpu"
    assert weight.detach() is weight
    assert weight.transpose(0, 0).shape == (16, 12)


def test_anything_else_gets_the_matrix():
    stack = make((2, 16, 12), dtype="bfloat16")
    weight, dense = stack[1], stack.dequantize()[1]
    assert torch.equal(weight.float(), stack.dequantize(torch.float32)[1])
    assert torch.equal(weight[3], dense[3])
    assert torch.equal(weight.sum(), dense.sum())
    assert torch.equal(torch.cat([weight, weight]), torch.cat([dense, dense]))
    assert torch.equal(weight.T.dequantize(), dense.T)
    left = torch.randn(3, 16, dtype=torch.bfloat16)
    assert torch.equal(weight.T @ left.T, dense.T @ left.T)
    with pytest.raises(AttributeError):
        _ = weight.not_there
    with pytest.raises(AttributeError):
        _ = weight._private
