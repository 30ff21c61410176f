"""Tensors that must not be quantized, and packed parts that must not be expanded."""

import pytest
import torch
from torch import nn

from ince.errors import QuantError
from ince.ops import dequantize_4bit, dequantize_absmax, quantize_4bit, quantize_absmax
from ince.quant import Linear4bit, NF4Config, quantize_model

BAD = [float("nan"), float("inf"), -float("inf")]
NOT_FLOATS = [torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]


@pytest.fixture
def parts():
    """The parts of a good tensor of 10 x 33 weights, to be spoilt one at a time."""
    packed, absmax = quantize_4bit(torch.randn(10, 33))
    return {"packed": packed, "absmax": absmax, "blocksize": 64, "shape": (10, 33)}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 63, 64, 127, 128, 129])
def test_one_non_finite_weight_is_found_anywhere(bad, dtype, place):
    weight = torch.randn(130).to(dtype)
    weight[place] = bad
    with pytest.raises(QuantError, match="1 of 130 weights are not finite"):
        quantize_4bit(weight)


@pytest.mark.parametrize("bad", BAD)
def test_a_tensor_of_nothing_else_is_refused(bad):
    with pytest.raises(QuantError, match="130 of 130"):
        quantize_4bit(torch.full((130,), bad))


def test_a_model_names_every_damaged_tensor_and_is_left_alone():
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
    with torch.no_grad():
        for i in range(1, 8):
            model[i].weight[:i] = float("nan")
    with pytest.raises(QuantError, match="7 tensors") as caught:
        quantize_model(model, NF4Config())
    assert caught.value.where is not None
    assert caught.value.where.startswith("1.weight (16 of 256), 2.weight (32 of 256)")
    assert all(type(layer) is nn.Linear for layer in model)


@pytest.mark.parametrize("shape", [(0,), (0, 64), (64, 0)])
def test_empty_tensors_are_refused(shape):
    with pytest.raises(QuantError, match="empty"):
        quantize_4bit(torch.empty(shape))
    no_bytes = torch.empty((0, 1), dtype=torch.uint8)
    with pytest.raises(QuantError, match="not the shape"):
        dequantize_4bit(no_bytes, torch.empty(0), 64, shape)
    with pytest.raises(QuantError, match="wrong length"):
        quantize_absmax(torch.empty(0))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_empty_layer_is_refused():
    with pytest.raises(QuantError, match="empty"):
        Linear4bit.from_linear(nn.Linear(0, 4), NF4Config())


@pytest.mark.parametrize("blocksize", [0, 1, -64, 16, 63, 96, 8192, 2**40])
def test_unknown_block_sizes_are_refused(parts, blocksize):
    with pytest.raises(QuantError, match="no such block size"):
        quantize_4bit(torch.ones(64), blocksize)
    with pytest.raises(QuantError, match="no such block size"):
        dequantize_4bit(**parts | {"blocksize": blocksize})


@pytest.mark.parametrize("dtype", NOT_FLOATS)
def test_other_types_are_refused(parts, dtype):
    with pytest.raises(QuantError, match="only float weights"):
        quantize_4bit(torch.ones(64, dtype=dtype))
    with pytest.raises(QuantError, match="cannot be expanded"):
        dequantize_4bit(**parts, dtype=dtype)
    with pytest.raises(QuantError, match="absmax has the wrong type"):
        quantize_absmax(torch.ones(64, dtype=dtype))


@pytest.mark.parametrize("num_bytes", [0, 1, 164, 166, 330])
def test_packed_weights_of_another_length_are_refused(parts, num_bytes):
    packed = torch.zeros((num_bytes, 1), dtype=torch.uint8)
    with pytest.raises(QuantError, match="packed has the wrong length") as caught:
        dequantize_4bit(**parts | {"packed": packed})
    assert caught.value.got == f"{num_bytes} entries"
    assert caught.value.expected is not None
    assert caught.value.expected.startswith("165 for shape (10, 33)")


@pytest.mark.parametrize("num_scales", [0, 1, 5, 7])
def test_scales_of_another_number_are_refused(parts, num_scales):
    with pytest.raises(QuantError, match="absmax has the wrong length"):
        dequantize_4bit(**parts | {"absmax": torch.ones(num_scales)})


def test_a_shape_of_another_tensor_is_refused(parts):
    for shape in ((10, 34), (11, 33), (330, 2), (-10, -33), (10, -33)):
        with pytest.raises(QuantError):
            dequantize_4bit(**parts | {"shape": shape})


def test_parts_of_another_type_are_refused(parts):
    with pytest.raises(QuantError, match="packed has the wrong type"):
        dequantize_4bit(**parts | {"packed": parts["packed"].to(torch.int8)})
    with pytest.raises(QuantError, match="absmax has the wrong type"):
        dequantize_4bit(**parts | {"absmax": parts["absmax"].bfloat16()})


def test_nested_scales_are_not_taken_for_scales(parts):
    codes, *_ = quantize_absmax(parts["absmax"])
    with pytest.raises(QuantError, match="absmax has the wrong type") as caught:
        dequantize_4bit(**parts | {"absmax": codes})
    assert caught.value.do == "scales in 8 bits need nested_absmax and nested_offset beside them"


def test_parts_on_two_devices_are_refused(parts):
    with pytest.raises(QuantError, match="two devices"):
        dequantize_4bit(**parts | {"absmax": parts["absmax"].to("meta")})


def test_nested_parts_that_do_not_fit_are_refused():
    codes, nested_absmax, offset = quantize_absmax(torch.rand(600))
    with pytest.raises(QuantError, match="nested_absmax has the wrong length"):
        dequantize_absmax(codes, nested_absmax[:2], offset)
    with pytest.raises(QuantError, match="codes has the wrong type"):
        dequantize_absmax(codes.float(), nested_absmax, offset)
    with pytest.raises(QuantError, match="offset has the wrong length"):
        dequantize_absmax(codes, nested_absmax, offset.expand(2))
    with pytest.raises(QuantError, match="codes has the wrong length"):
        dequantize_absmax(codes[:0], nested_absmax, offset)


def test_any_bytes_expand_to_something_finite(parts):
    packed = torch.randint(0, 256, (165, 1), dtype=torch.uint8)
    weight = dequantize_4bit(**parts | {"packed": packed})
    assert bool(weight.isfinite().all())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["nested_absmax", "nested_offset"])
def test_a_state_with_damaged_scales_is_refused(bad, name):
    layer = Linear4bit.from_linear(nn.Linear(64, 8), NF4Config())
    state = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    state[name].fill_(bad)
    with pytest.raises(QuantError, match="not finite") as caught:
        layer.load_state_dict(state)
    assert caught.value.where == name


def test_a_state_with_codes_as_floats_is_refused():
    layer = Linear4bit.from_linear(nn.Linear(64, 8), NF4Config())
    state = layer.state_dict()
    state["packed"] = state["packed"].float()
    with pytest.raises(QuantError, match="wrong type"):
        nn.Sequential(layer).load_state_dict({f"0.{k}": v for k, v in state.items()})


@pytest.mark.parametrize("change", ["drop", "add", "shorten"])
def test_a_state_that_does_not_fit_is_refused(change):
    layer = Linear4bit.from_linear(nn.Linear(64, 8), NF4Config())
    state = dict(layer.state_dict())
    if change == "drop":
        del state["nested_offset"]
    elif change == "add":
        state["quant_map"] = torch.ones(16)
    else:
        state["packed"] = state["packed"][:-1]
    with pytest.raises(RuntimeError, match="Error\\(s\\) in loading state_dict"):
        layer.load_state_dict(state)
