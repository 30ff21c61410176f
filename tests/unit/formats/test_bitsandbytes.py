"""Layers to the tensors of bitsandbytes' layout and back; damaged ones are refused."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ince import Linear4bit, NF4Config
from ince.errors import QuantError
from ince.formats.bitsandbytes import (
    from_bitsandbytes,
    packed_names,
    read_packed,
    to_bitsandbytes,
    write_packed,
)

WEIGHT = "m.q.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def make_layer(num_out=24, num_in=40, *, bias=True, **settings):
    torch.manual_seed(3)
    return Linear4bit.from_linear(nn.Linear(num_in, num_out, bias=bias), NF4Config(**settings))


def assert_same(a, b):
    state_a, state_b = a.state_dict(), b.state_dict()
    assert state_a.keys() == state_b.keys()
    assert all(torch.equal(state_a[name], state_b[name]) for name in state_a)
    assert a.config == b.config
    assert a.weight_shape == b.weight_shape


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
def test_a_layer_comes_back_as_it_was(quant_type, double_quant, blocksize):
    layer = make_layer(quant_type=quant_type, double_quant=double_quant, blocksize=blocksize)
    assert_same(from_bitsandbytes("m.q", to_bitsandbytes("m.q", layer)), layer)


@given(st.integers(1, 9), st.integers(1, 33), st.booleans())
def test_any_shape_comes_back(num_out, num_in, double_quant):
    layer = make_layer(num_out, num_in, bias=False, double_quant=double_quant)
    assert_same(from_bitsandbytes("m.q", to_bitsandbytes("m.q", layer)), layer)


def test_the_tensors_have_the_names_of_the_layout():
    assert set(to_bitsandbytes("m.q", make_layer())) == {
        WEIGHT,
        f"{WEIGHT}.absmax",
        f"{WEIGHT}.quant_map",
        f"{WEIGHT}.nested_absmax",
        f"{WEIGHT}.nested_quant_map",
        STATE,
        "m.q.bias",
    }
    plain = to_bitsandbytes("m.q", make_layer(double_quant=False, bias=False))
    assert set(plain) == {WEIGHT, f"{WEIGHT}.absmax", f"{WEIGHT}.quant_map", STATE}


def test_the_tensors_are_the_buffers_themselves():
    layer = make_layer()
    assert to_bitsandbytes("m.q", layer)[WEIGHT].data_ptr() == layer.packed.data_ptr()


def test_the_dtype_of_products_is_the_caller_s():
    tensors = to_bitsandbytes("m.q", make_layer(compute_dtype="float32"))
    assert from_bitsandbytes("m.q", tensors, compute_dtype=torch.float16).compute_dtype == (
        torch.float16
    )
    assert read_packed(WEIGHT, tensors).dtype == "float32"


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_codes_stored_as_another_type_are_read_as_bytes(storage):
    layer = make_layer()
    tensors = to_bitsandbytes("m.q", layer)
    tensors[WEIGHT] = tensors[WEIGHT].flatten().view(storage).unsqueeze(1)
    assert_same(from_bitsandbytes("m.q", tensors), layer)


def test_a_stack_of_matrices_comes_back():
    layer = make_layer(6, 20)
    packed = read_packed(WEIGHT, to_bitsandbytes("m.q", layer))
    stack = type(packed)(**(vars(packed) | {"shape": (2, 3, 20)}))
    tensors = write_packed("m.experts.down_proj", stack)
    assert read_packed("m.experts.down_proj", tensors).shape == (2, 3, 20)
    with pytest.raises(QuantError, match="not the weight of a linear layer"):
        from_bitsandbytes("m.q", write_packed(WEIGHT, stack))


def test_packed_weights_are_found_by_name():
    names = [*to_bitsandbytes("a", make_layer()), *to_bitsandbytes("b.c", make_layer()), "d.weight"]
    found = packed_names(names)
    assert list(found) == ["a.weight", "b.c.weight"]
    assert set(found["a.weight"]) == {n for n in names if n.startswith("a.weight")}


def test_int4_is_not_written():
    with pytest.raises(QuantError, match="bitsandbytes has no such 4-bit format"):
        to_bitsandbytes("m.q", make_layer(quant_type="int4"))


@pytest.mark.parametrize(
    "part", ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"]
)
def test_a_missing_part_is_named(part):
    tensors = to_bitsandbytes("m.q", make_layer())
    del tensors[WEIGHT + part]
    with pytest.raises(QuantError, match="is missing") as caught:
        from_bitsandbytes("m.q", tensors)
    assert caught.value.where == WEIGHT + part


def lying(**fields):
    def change(tensors):
        state = json.loads(bytes(tensors[STATE].tolist()))
        data = json.dumps(state | fields).encode()
        tensors[STATE] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    return change


def replaced(part, value):
    def change(tensors):
        tensors[WEIGHT + part] = value

    return change


def other_map(part, index):
    def change(tensors):
        tensors[WEIGHT + part] = tensors[WEIGHT + part].clone()
        tensors[WEIGHT + part][index] += 1e-3

    return change


def without_state(tensors):
    del tensors[STATE]


def two_states(tensors):
    tensors[f"{WEIGHT}.quant_state.bitsandbytes__fp4"] = tensors[STATE]


def unknown_type(tensors):
    tensors[f"{WEIGHT}.quant_state.bitsandbytes__int4"] = tensors.pop(STATE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lying(shape=[24, 41]), "do not fit its shape"),
        (lying(shape=[2**61, 2**61]), "do not fit its shape"),
        (lying(shape=[960]), "not the weight of a linear layer"),
        (lying(blocksize=128), "scales of a packed weight do not fit"),
        (lying(nested_blocksize=128), "nested_blocksize"),
        (replaced("", torch.zeros(480)), "do not fit its shape"),
        (replaced("", torch.zeros(0, 1, dtype=torch.uint8)), "do not fit its shape"),
        (replaced("", torch.zeros(60, dtype=torch.complex64)), "cannot be stored like this"),
        (replaced(".absmax", torch.zeros(15)), "scales of a packed weight do not fit"),
        (replaced(".absmax", torch.zeros(14, dtype=torch.uint8)), "scales of a packed weight"),
        (replaced(".nested_absmax", torch.full((1,), torch.nan)), "not finite"),
        (replaced(".nested_absmax", torch.zeros(2)), "scales of a packed weight do not fit"),
        (replaced(".quant_map", torch.zeros(16)), "other values for its codes"),
        (replaced(".quant_map", torch.zeros(256)), "other values for its codes"),
        (replaced(".quant_map", torch.full((16,), torch.nan)), "other values for its codes"),
        (other_map(".quant_map", 3), "other values for its codes"),
        (other_map(".nested_quant_map", 200), "other values for its codes"),
        (replaced(".SCB", torch.zeros(24)), "parts that do not belong"),
        (without_state, "not a weight packed by bitsandbytes"),
        (two_states, "not a weight packed by bitsandbytes"),
        (unknown_type, "not a weight packed by bitsandbytes"),
    ],
)
def test_damage_is_refused(damage, message):
    tensors = to_bitsandbytes("m.q", make_layer())
    damage(tensors)
    with pytest.raises(QuantError, match=message):
        from_bitsandbytes("m.q", tensors)


def test_maps_that_differ_in_the_last_bit_are_the_same():
    layer = make_layer()
    tensors = to_bitsandbytes("m.q", layer)
    for part in (".quant_map", ".nested_quant_map"):
        tensors[WEIGHT + part] = tensors[WEIGHT + part].nextafter(torch.tensor(2.0))
    assert_same(from_bitsandbytes("m.q", tensors), layer)


@pytest.mark.parametrize("bias", [torch.zeros(23), torch.zeros(24, dtype=torch.int8)])
def test_a_bias_that_does_not_fit_is_refused(bias):
    tensors = to_bitsandbytes("m.q", make_layer()) | {"m.q.bias": bias}
    with pytest.raises(QuantError, match="bias does not fit"):
        from_bitsandbytes("m.q", tensors)


def test_8_bit_scales_among_float_ones_are_refused():
    tensors = to_bitsandbytes("m.q", make_layer(double_quant=False))
    tensors[f"{WEIGHT}.nested_absmax"] = torch.ones(1)
    with pytest.raises(QuantError, match="parts that do not belong"):
        from_bitsandbytes("m.q", tensors)
