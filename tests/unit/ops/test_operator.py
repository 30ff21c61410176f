import pytest
import torch

from ince.errors import QuantError
from ince.ops import dequantize_nf4, quantize_absmax, quantize_nf4

OPERATORS = ("quantize_nf4", "dequantize_nf4", "quantize_absmax", "dequantize_absmax")


def samples(name):
    """Arguments in several sizes: whole blocks, a short last block, an odd number of weights."""
    torch.manual_seed(0)
    for shape, dtype in (
        ((4, 64), torch.float32),
        ((33, 5), torch.bfloat16),
        ((1,), torch.float16),
    ):
        weight = torch.randn(shape).to(dtype)
        packed, absmax = quantize_nf4(weight)
        yield {
            "quantize_nf4": (weight, 64),
            "dequantize_nf4": (packed, absmax, 64, list(shape), dtype),
            "quantize_absmax": (absmax,),
            "dequantize_absmax": quantize_absmax(absmax),
        }[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_keeps_the_rules_of_its_kind(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        done = torch.library.opcheck(operator, args)
        assert set(done.values()) == {"SUCCESS"}


def test_an_operator_keeps_the_rules_for_a_weight_that_asks_for_a_gradient():
    weight = torch.randn(5, 64, requires_grad=True)
    torch.library.opcheck(torch.ops.ince.quantize_nf4.default, (weight, 64))
    packed, absmax = quantize_nf4(weight)
    assert not packed.requires_grad
    assert not absmax.requires_grad
    assert not dequantize_nf4(packed, absmax.requires_grad_(), 64, weight.shape).requires_grad


@pytest.mark.parametrize("name", OPERATORS)
def test_meta_tensors_give_the_same_shapes_and_types(name):
    operator = getattr(torch.ops.ince, name).default
    for args in samples(name):
        on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
        real, fake = operator(*args), operator(*on_meta)
        pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
        for a, b in pairs:
            assert (a.shape, a.dtype, b.device.type) == (b.shape, b.dtype, "meta")


def test_checks_stand_before_the_raw_operator_and_before_meta_tensors():
    with pytest.raises(QuantError, match="no such block size"):
        torch.ops.ince.quantize_nf4(torch.ones(8), 48)
    with pytest.raises(QuantError, match="no such block size"):
        torch.ops.ince.quantize_nf4(torch.ones(8, device="meta"), 48)


def test_an_operator_compiles_into_a_whole_graph():
    def round_trip(weight):
        packed, absmax = quantize_nf4(weight)
        return dequantize_nf4(packed, absmax, 64, weight.shape, weight.dtype)

    compiled = torch.compile(round_trip, backend="eager", fullgraph=True)
    weight = torch.randn(16, 64)
    assert torch.equal(compiled(weight), round_trip(weight))
