"""What bitsandbytes says about a packed weight beside its tensors: a small JSON text.

It is stored as a tensor of its UTF-8 bytes, since a tensor is all that safetensors holds:

    {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 128],
     "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0522}

The last three are there when the scales are in 8 bits. Everything read is checked before
anything is made of it: the text comes from other people's files.
"""

import json
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from ince.errors import QuantError, did_you_mean
from ince.ops.codes import ABSMAX_BLOCKSIZE, BLOCKSIZES

__all__ = ["STORED_TYPES", "PackedState", "decode_state", "encode_state"]

STORED_TYPES: Final = ("nf4", "fp4")
"""The 4-bit formats that bitsandbytes has."""

_DTYPES: Final = ("bfloat16", "float16", "float32")
_REQUIRED: Final = ("quant_type", "blocksize", "dtype", "shape")
_NESTED: Final = ("nested_blocksize", "nested_dtype", "nested_offset")
# A real text has about 200 bytes.
_MAX_BYTES = 1 << 16
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class PackedState:
    """The text, checked."""

    quant_type: str
    blocksize: int
    dtype: str
    """Of the weight before it was packed, which is also what bitsandbytes expands it to."""
    shape: tuple[int, ...]
    nested_offset: float | None
    """Mean of the scales; None where they are kept in float32."""


def encode_state(state: PackedState) -> Tensor:
    """The text as bytes: (n,) uint8 on the CPU.

    Raises:
        QuantError: the format is none that bitsandbytes reads.
    """
    if state.quant_type not in STORED_TYPES:
        raise QuantError(
            "bitsandbytes has no such 4-bit format",
            where="quant_type",
            got=state.quant_type,
            expected=", ".join(STORED_TYPES),
            do="quantize with one of these to save the model in its layout",
        )
    fields: dict[str, object] = {
        "quant_type": state.quant_type,
        "blocksize": state.blocksize,
        "dtype": state.dtype,
        "shape": list(state.shape),
    }
    if state.nested_offset is not None:
        fields |= {
            "nested_blocksize": ABSMAX_BLOCKSIZE,
            "nested_dtype": "float32",
            "nested_offset": state.nested_offset,
        }
    text = json.dumps(fields, allow_nan=False).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def decode_state(name: str, text: Tensor) -> PackedState:
    """Read and check what `encode_state` or bitsandbytes wrote.

    Args:
        name: of the tensor, for messages; it ends with the format's name.
        text: (n,) uint8.

    Raises:
        QuantError: it is not such a text, or says something that cannot be read.
    """
    fields = _fields(name, text)
    absent = [key for key in _REQUIRED if key not in fields]
    nested = [key for key in _NESTED if key in fields]
    if nested:
        absent += [key for key in _NESTED if key not in fields]
    if absent:
        raise _unfit(name, "does not say all that is needed", f"no {', '.join(absent)}")
    unknown = [key for key in fields if key not in (*_REQUIRED, *_NESTED)]
    if unknown:
        # A field that changes what the codes mean must not be passed over.
        raise _unfit(name, "says something that ince does not know", ", ".join(sorted(unknown)))
    return PackedState(
        quant_type=_quant_type(name, fields["quant_type"]),
        blocksize=_blocksize(name, fields["blocksize"]),
        dtype=_one_of(name, "dtype", fields["dtype"], _DTYPES),
        shape=_shape(name, fields["shape"]),
        nested_offset=_offset(name, fields) if nested else None,
    )


def _unfit(name: str, what: str, got: object, expected: object = None) -> QuantError:
    return QuantError(
        f"the state of a packed weight {what}",
        where=name,
        got=got,
        expected=expected,
        do="get the file again; or quantize the model again, from its 16-bit weights",
    )


def _fields(name: str, text: Tensor) -> dict[str, object]:
    if text.dtype != torch.uint8 or text.ndim != 1 or not 0 < text.numel() <= _MAX_BYTES:
        raise _unfit(
            name, "is no text", f"{text.dtype}, shape {tuple(text.shape)}", "bytes of JSON"
        )
    try:
        value = json.loads(bytes(text.tolist()).decode())
    except (ValueError, RecursionError) as error:
        raise _unfit(name, "is not readable as JSON", str(error)) from error
    if not isinstance(value, dict):
        raise _unfit(name, "is not a JSON object", type(value).__name__)
    return cast("dict[str, object]", value)


def _one_of(name: str, key: str, value: object, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise QuantError(
            f"the state of a packed weight has an unknown {key}",
            where=name,
            got=value,
            expected=", ".join(known),
            do=did_you_mean(value, known) if isinstance(value, str) else None,
        )
    return value


def _quant_type(name: str, value: object) -> str:
    quant_type = _one_of(name, "quant_type", value, STORED_TYPES)
    if not name.endswith(f"__{quant_type}"):
        raise _unfit(name, "is of another format than its name says", quant_type)
    return quant_type


def _blocksize(name: str, value: object) -> int:
    # True is 1 to Python.
    if isinstance(value, bool) or not isinstance(value, int) or value not in BLOCKSIZES:
        raise _unfit(
            name, "has an unknown block size", value, f"one of {', '.join(map(str, BLOCKSIZES))}"
        )
    return value


def _shape(name: str, value: object) -> tuple[int, ...]:
    sizes = cast("list[object]", value) if isinstance(value, list) else []
    fits = 0 < len(sizes) <= _MAX_DIMENSIONS and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 62
        for size in sizes
    )
    if not fits:
        raise _unfit(name, "has no usable shape", value, "sizes of at least 1")
    return tuple(cast("list[int]", sizes))


def _offset(name: str, fields: dict[str, object]) -> float:
    size = fields["nested_blocksize"]
    if isinstance(size, bool) or size != ABSMAX_BLOCKSIZE:
        raise _unfit(name, "has an unknown nested_blocksize", size, ABSMAX_BLOCKSIZE)
    _one_of(name, "nested_dtype", fields["nested_dtype"], ("float32",))
    offset = fields["nested_offset"]
    is_number = isinstance(offset, int | float) and not isinstance(offset, bool)
    if not is_number or not abs(cast(float, offset)) <= torch.finfo(torch.float32).max:
        raise _unfit(name, "has no usable nested_offset", offset, "a finite number")
    return float(cast(float, offset))
