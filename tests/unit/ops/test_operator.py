import pytest
import torch

from ince.errors import QuantError
from ince.ops import QUANT_TYPES, dequantize_4bit, quantize_4bit, quantize_absmax

OPERATORS = (
    "quantize_4bit",
    "dequantize_4bit",
    "linear_4bit",
    "linear_4bit_input_grad",
    "gemv_4bit",
    "quantize_absmax",
    "dequantize_absmax",
)
SHAPES = (((4, 64), torch.float32), ((33, 5), torch.bfloat16), ((1, 1), torch.float16))


def samples(name):
    """Arguments in several sizes: whole blocks, a short last block, an odd number of weights."""
    for number, (shape, dtype) in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(number)

        def draw(*size, dtype=dtype, generator=generator):
            return torch.randn(size, generator=generator).to(dtype)

        weight = draw(*shape)
        quant_type = QUANT_TYPES[number]
        packed, absmax = quantize_4bit(weight, 64, quant_type)
        codes, nested_absmax, offset = quantize_absmax(absmax)
        # Once with plain scales and a bias, once with nested scales and none.
        plain = (packed, absmax, None, None)
        nested = (packed, codes, nested_absmax, offset)
        rest = (64, list(shape), quant_type)
        x, grad = draw(2, 3, shape[1]), draw(2, 3, shape[0])
        yield from {
            "quantize_4bit": [(weight, 64, quant_type, False), (weight, 64, quant_type, True)],
            "dequantize_4bit": [
                (*parts, 64, list(shape), dtype, quant_type) for parts in (plain, nested)
            ],
            "linear_4bit": [(x, *plain, draw(shape[0]), *rest), (x[0, 0], *nested, None, *rest)],
            "linear_4bit_input_grad": [(grad, *plain, *rest), (grad[0, 0], *nested, *rest)],
            "gemv_4bit": [
                (x[:1, :1], *plain, draw(shape[0]), *rest),
                (x[0, 0], *nested, None, *rest),
            ],
            "quantize_absmax": [(absmax,)],
            "dequantize_absmax": [(codes, nested_absmax, offset)],
        }[name]


def with_gradients(args):
    """The same, where floats that may ask for a gradient do."""
    return [
        arg.detach().clone().requires_grad_()
        if isinstance(arg, torch.Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    ]


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_keeps_the_rules_of_its_kind(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        done = torch.library.opcheck(operator, args)
        assert set(done.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["linear_4bit", "linear_4bit_input_grad", "gemv_4bit"])
def test_a_product_keeps_the_rules_where_gradients_are_asked_for(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        x, *rest = args
        done = torch.library.opcheck(operator, (x.requires_grad_(), *rest))
        assert set(done.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    "name", ["quantize_4bit", "dequantize_4bit", "quantize_absmax", "dequantize_absmax"]
)
def test_what_is_packed_never_asks_for_a_gradient(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        results = operator(*with_gradients(args))
        for result in results if isinstance(results, tuple) else (results,):
            assert not result.requires_grad


@pytest.mark.parametrize("name", OPERATORS)
def test_meta_tensors_give_the_same_shapes_and_types(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
        real, fake = operator(*args), operator(*on_meta)
        pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
        for a, b in pairs:
            assert (a.shape, a.dtype, b.device.type) == (b.shape, b.dtype, "meta")


@pytest.mark.parametrize("name", OPERATORS)
def test_arguments_are_left_as_they_are(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        before = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
        operator(*args)
        for a, b in zip(args, before, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_checks_stand_before_the_raw_operator_and_before_meta_tensors():
    for device in ("cpu", "meta"):
        with pytest.raises(QuantError, match="no such block size"):
            torch.ops.ince.quantize_4bit(torch.ones(8, device=device), 48, "nf4", False)
        with pytest.raises(QuantError, match="no such 4-bit format") as caught:
            torch.ops.ince.quantize_4bit(torch.ones(8, device=device), 64, "nf", False)
        assert caught.value.do is not None
        assert "nf4" in caught.value.do


@pytest.mark.parametrize("scale_search", [False, True])
def test_an_operator_compiles_into_a_whole_graph(scale_search):
    def round_trip(weight):
        packed, absmax = quantize_4bit(weight, scale_search=scale_search)
        return dequantize_4bit(packed, absmax, 64, weight.shape, weight.dtype)

    compiled = torch.compile(round_trip, backend="eager", fullgraph=True)
    weight = torch.randn(16, 64)
    assert torch.equal(compiled(weight), round_trip(weight))
