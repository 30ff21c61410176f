"""Products with a 4-bit weight, forward and back, against the weight expanded."""

import pytest
import torch
from torch.nn import functional as F

from ince.errors import QuantError
from ince.ops import (
    QUANT_TYPES,
    dequantize_4bit,
    gemv_4bit,
    linear_4bit,
    quantize_4bit,
    quantize_absmax,
)
from ince.quant import Linear4bit, NF4Config

# In float32 only the order of sums may differ between backends.
NEAR = {"rtol": 1e-5, "atol": 1e-5}
SHAPES = [(64, 64), (48, 96), (7, 33), (1, 1), (65, 300), (128, 32)]


def draw(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size)))


def packed_weight(shape, quant_type="nf4", *, nested=True):
    """(positional parts, nested parts by name, the weight expanded in float32)."""
    packed, absmax = quantize_4bit(draw(*shape), 64, quant_type)
    names = {}
    if nested:
        absmax, nested_absmax, offset = quantize_absmax(absmax)
        names = {"nested_absmax": nested_absmax, "nested_offset": offset}
    weight = dequantize_4bit(packed, absmax, 64, shape, torch.float32, quant_type, **names)
    return (packed, absmax, 64, shape, quant_type), names, weight


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_the_expanded_weight(shape, nested, quant_type):
    parts, names, weight = packed_weight(shape, quant_type, nested=nested)
    x, bias = draw(2, 5, shape[1]), draw(shape[0])
    torch.testing.assert_close(linear_4bit(x, *parts, **names), F.linear(x, weight), **NEAR)
    row = x[:1, :1]
    for product, given in ((linear_4bit, x), (gemv_4bit, row), (gemv_4bit, row[0, 0])):
        torch.testing.assert_close(
            product(given, *parts, **names, bias=bias), F.linear(given, weight, bias), **NEAR
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_has_the_type_of_its_input(dtype):
    parts, names, weight = packed_weight((48, 96))
    x = draw(9, 96).to(dtype)
    y = linear_4bit(x, *parts, **names)
    assert y.dtype == dtype
    torch.testing.assert_close(y, F.linear(x, weight.to(dtype)), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_any_number_of_rows(num_rows):
    parts, names, weight = packed_weight((48, 96))
    x = draw(num_rows, 96)
    torch.testing.assert_close(linear_4bit(x, *parts, **names), x @ weight.t(), **NEAR)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("rows", [(4,), (2, 3), ()])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_expanded_weight(shape, rows, quant_type):
    parts, names, weight = packed_weight(shape, quant_type)
    found, expected = [], []
    for into, product in (
        (found, lambda x, bias: linear_4bit(x, *parts, **names, bias=bias)),
        (expected, lambda x, bias: F.linear(x, weight, bias)),
    ):
        x, bias = draw(*rows, shape[1]).requires_grad_(), draw(shape[0]).requires_grad_()
        y = product(x, bias)
        y.backward(draw(*y.shape, seed=1))
        into += [y.detach(), x.grad, bias.grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **NEAR)


def test_the_gradient_of_a_single_row():
    parts, names, weight = packed_weight((48, 96))
    x = draw(96).requires_grad_()
    gemv_4bit(x, *parts, **names).backward(draw(48))
    torch.testing.assert_close(x.grad, draw(48) @ weight, **NEAR)


def test_gradients_agree_with_differences():
    # The product is linear: in float32 a difference over a whole unit is as exact as any.
    parts, names, _ = packed_weight((7, 33))
    x, direction, grad = draw(3, 33).requires_grad_(), draw(3, 33, seed=1), draw(3, 7)
    linear_4bit(x, *parts, **names).backward(grad)
    ahead, behind = (linear_4bit(x.detach() + s * direction, *parts, **names) for s in (1, -1))
    by_difference = ((ahead - behind) / 2 * grad).sum()
    torch.testing.assert_close((x.grad * direction).sum(), by_difference, rtol=1e-4, atol=1e-3)


def test_second_derivatives_pass():
    parts, names, weight = packed_weight((7, 33))
    x, grad = draw(3, 33).requires_grad_(), draw(3, 7).requires_grad_()
    (dx,) = torch.autograd.grad(
        linear_4bit(x, *parts, **names), x, grad_outputs=grad, create_graph=True
    )
    (back,) = torch.autograd.grad(dx, grad, grad_outputs=draw(3, 33, seed=2))
    torch.testing.assert_close(back, draw(3, 33, seed=2) @ weight.t(), **NEAR)


def test_nothing_asks_for_a_gradient_that_none_asked_of():
    parts, names, _ = packed_weight((7, 33))
    assert not linear_4bit(draw(3, 33), *parts, **names).requires_grad
    x = draw(3, 33)
    bias = draw(7).requires_grad_()
    linear_4bit(x, *parts, **names, bias=bias).sum().backward()
    assert bias.grad.tolist() == [3.0] * 7
    assert x.grad is None


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_layer_compiles_forward_and_back_without_a_break(nested, rows):
    torch._dynamo.reset()
    config = NF4Config(double_quant=nested, compute_dtype="float32")
    linear = torch.nn.Linear(96, 48)
    layer = Linear4bit.from_linear(linear, config)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for call in (layer, compiled):
        x = draw(rows, 96).requires_grad_()
        y = call(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **NEAR)


def test_a_layer_compiles_for_any_number_of_rows():
    torch._dynamo.reset()
    layer = Linear4bit.from_linear(torch.nn.Linear(96, 48), NF4Config(compute_dtype="float32"))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (2, 5, 17):
        x = draw(rows, 96)
        torch.testing.assert_close(compiled(x), layer(x), **NEAR)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"x": torch.ones(3, 95)}, "the input does not fit"),
        ({"x": torch.ones(())}, "the input does not fit"),
        ({"x": torch.ones(3, 96).double()}, "cannot be multiplied with this type"),
        ({"x": torch.ones(3, 96, device="meta")}, "on two devices"),
        ({"bias": torch.ones(47)}, "the bias does not fit"),
        ({"bias": torch.ones(48).half()}, "the bias does not fit"),
        ({"shape": (48 * 96,)}, "not the shape of a linear layer"),
        ({"shape": (24, 96)}, "wrong length"),
        ({"quant_type": "int8"}, "no such 4-bit format"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    (packed, absmax, blocksize, shape, quant_type), names, _ = packed_weight((48, 96))
    arguments = {
        "x": torch.ones(3, 96),
        "packed": packed,
        "absmax": absmax,
        "blocksize": blocksize,
        "shape": shape,
        "quant_type": quant_type,
    } | names
    assert linear_4bit(**arguments).shape == (3, 48)
    with pytest.raises(QuantError, match=what):
        linear_4bit(**arguments | changes)


def test_gemv_takes_one_row_alone():
    parts, names, _ = packed_weight((48, 96))
    for x in (draw(2, 96), draw(0, 96)):
        with pytest.raises(QuantError, match="more or fewer than one row"):
            gemv_4bit(x, *parts, **names)
