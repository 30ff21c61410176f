"""The JSON text beside a packed weight: written, read, and refused when it cannot be meant."""

import json

import pytest
import torch

from ince.errors import QuantError
from ince.formats.bitsandbytes_state import PackedState, decode_state, encode_state

NAME = "q.weight.quant_state.bitsandbytes__nf4"
PLAIN = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 128]}
NESTED = PLAIN | {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0522}


def as_tensor(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize("offset", [None, 0.0522, -1.5, 0.1234567])
def test_what_is_written_is_read(offset):
    state = PackedState("nf4", 64, "bfloat16", (128, 3), offset)
    assert decode_state(NAME, encode_state(state)) == state


def test_a_text_as_bitsandbytes_writes_it_is_read():
    assert decode_state(NAME, as_tensor(NESTED)) == PackedState(
        "nf4", 64, "bfloat16", (128, 128), 0.0522
    )
    assert decode_state(NAME, as_tensor(PLAIN)).nested_offset is None


def test_a_format_that_bitsandbytes_does_not_have_is_not_written():
    with pytest.raises(QuantError, match="bitsandbytes has no such 4-bit format"):
        encode_state(PackedState("int4", 64, "bfloat16", (2, 2), None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_type": "af4"}, "unknown quant_type"),
        ({"quant_type": "fp4"}, "of another format than its name"),
        ({"quant_type": 4}, "unknown quant_type"),
        ({"blocksize": 100}, "unknown block size"),
        ({"blocksize": True}, "unknown block size"),
        ({"blocksize": 64.0}, "unknown block size"),
        ({"blocksize": 2**80}, "unknown block size"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"shape": None}, "no usable shape"),
        ({"shape": [128, -1]}, "no usable shape"),
        ({"shape": [0, 4]}, "no usable shape"),
        ({"shape": [True, 4]}, "no usable shape"),
        ({"shape": []}, "no usable shape"),
        ({"shape": [1] * 9}, "no usable shape"),
        ({"shape": [2**70, 1]}, "no usable shape"),
        ({"shape": "128"}, "no usable shape"),
        ({"nested_blocksize": 128}, "unknown nested_blocksize"),
        ({"nested_blocksize": "256"}, "unknown nested_blocksize"),
        ({"nested_dtype": "float16"}, "unknown nested_dtype"),
        ({"nested_offset": float("nan")}, "no usable nested_offset"),
        ({"nested_offset": float("inf")}, "no usable nested_offset"),
        ({"nested_offset": 1e39}, "no usable nested_offset"),
        ({"nested_offset": 10**400}, "no usable nested_offset"),
        ({"nested_offset": "0"}, "no usable nested_offset"),
        ({"nested_offset": True}, "no usable nested_offset"),
        ({"rotation": "hadamard"}, "says something that ince does not know"),
    ],
)
def test_a_lying_text_is_refused(change, message):
    with pytest.raises(QuantError, match=message) as caught:
        decode_state(NAME, as_tensor(NESTED | change))
    assert caught.value.where == NAME


@pytest.mark.parametrize("key", [*NESTED])
def test_a_missing_field_is_refused(key):
    fields = {name: value for name, value in NESTED.items() if name != key}
    with pytest.raises(QuantError, match="does not say all that is needed"):
        decode_state(NAME, as_tensor(fields))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 60_000, b" " * 70_000, b'{"a":']
)
def test_a_text_that_is_none_is_refused(data):
    text = as_tensor(data) if data else torch.empty(0, dtype=torch.uint8)
    with pytest.raises(QuantError, match="state of a packed weight"):
        decode_state(NAME, text)


def test_a_tensor_that_is_no_text_is_refused():
    for text in (torch.ones(3), torch.ones((2, 2), dtype=torch.uint8)):
        with pytest.raises(QuantError, match="is no text"):
            decode_state(NAME, text)
