"""The parts of a tensor packed in four bits, and the checks that every operator on them shares.

- *packed*: ceil(n/2) bytes, uint8, two codes each, the first weight in the high nibble.
- *absmax*: one scale per block of weights, float32; or uint8, with the two that follow.
- *nested_absmax*: one float32 scale per 256 scales. *nested_offset*: one float32, their mean.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ince.errors import QuantError, did_you_mean
from ince.ops.codes import ABSMAX_BLOCKSIZE, BLOCKSIZES, QUANT_TYPES

__all__ = ["FLOAT_DTYPES", "check_blocksize", "check_parts", "check_quant_type"]

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_blocksize(blocksize: int) -> None:
    """Raise `QuantError` unless weights may share a scale in such numbers."""
    if blocksize not in BLOCKSIZES:
        raise QuantError(
            "no such block size",
            where="blocksize",
            got=blocksize,
            expected=", ".join(map(str, BLOCKSIZES)),
        )


def check_quant_type(quant_type: str) -> None:
    """Raise `QuantError` unless there is such a format."""
    if quant_type not in QUANT_TYPES:
        raise QuantError(
            "no such 4-bit format",
            where="quant_type",
            got=quant_type,
            expected=", ".join(QUANT_TYPES),
            do=did_you_mean(quant_type, QUANT_TYPES),
        )


def check_parts(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> None:
    """Raise `QuantError` unless all parts are of one tensor of `shape`."""
    check_blocksize(blocksize)
    check_quant_type(quant_type)
    num_weights = math.prod(shape)
    if any(size < 0 for size in shape) or num_weights == 0:
        raise QuantError(
            "not the shape of a quantized tensor",
            where="shape",
            got=tuple(shape),
            expected="sizes of at least 1",
        )
    num_blocks = -(-num_weights // blocksize)
    is_nested = nested_absmax is not None or nested_offset is not None
    parts: list[tuple[str, Tensor | None, torch.dtype, int]] = [
        ("packed", packed, torch.uint8, (num_weights + 1) // 2),
        ("absmax", absmax, torch.uint8 if is_nested else torch.float32, num_blocks),
    ]
    if is_nested:
        num_nested = -(-num_blocks // ABSMAX_BLOCKSIZE)
        parts += [
            ("nested_absmax", nested_absmax, torch.float32, num_nested),
            ("nested_offset", nested_offset, torch.float32, 1),
        ]
    for name, part, dtype, length in parts:
        _check_part(name, part, dtype, length, f"shape {tuple(shape)} and blocks of {blocksize}")
        if part is not None and part.device != packed.device:
            raise QuantError(
                "packed weights and their scales are on two devices",
                got=f"packed on {packed.device}, {name} on {part.device}",
                do="move all parts to one device",
            )


def _check_part(
    name: str, part: Tensor | None, dtype: torch.dtype, length: int, of_what: str
) -> None:
    if part is None:
        raise QuantError(
            f"{name} is missing",
            where=name,
            expected="nested_absmax and nested_offset together, or neither",
        )
    if part.dtype != dtype:
        is_nested = name == "absmax" and part.dtype == torch.uint8
        raise QuantError(
            f"{name} has the wrong type",
            where=name,
            got=str(part.dtype),
            expected=str(dtype),
            do="scales in 8 bits need nested_absmax and nested_offset beside them"
            if is_nested
            else None,
        )
    if part.numel() != length:
        raise QuantError(
            f"{name} has the wrong length",
            where=name,
            got=f"{part.numel()} entries",
            expected=f"{length} for {of_what}",
            do="packed weights, scales, shape and block size must be of one tensor",
        )
