"""The state of an optimizer in 8 bits: the declaration of its two operators.

Numbers are cut into blocks of 256 in row-major order, each with the largest magnitude of its
numbers as its scale, and coded in a dynamic map: the signed one for a first moment, the unsigned
one for a second. A number then takes 8.125 bits instead of 32. The layout is that of
bitsandbytes, whose codes mean the same here.

Two things differ from bitsandbytes, and no reader can tell. A number gets the code that is
nearest over the whole range, where bitsandbytes on a CPU looks it up on a grid of 65,536 steps
and so loses what is below 1/65,536 of the largest. And in the unsigned map a number above zero
never becomes zero (see `ince.ops.codes.dynamic_thresholds`).

Source: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.
"""

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.codes import STATE_BLOCKSIZE
from ince.ops.operator import Operator
from ince.ops.packed import FLOAT_DTYPES

__all__ = ["DEQUANTIZE_8BIT", "QUANTIZE_8BIT", "dequantize_8bit", "num_blocks", "quantize_8bit"]


def quantize_8bit(values: Tensor, *, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Code numbers in 8 bits.

    Args:
        values: float32, bfloat16 or float16, of any shape; n numbers.
        signed: which dynamic map. In the unsigned one what is below zero becomes zero.

    Returns:
        codes: uint8, in the shape of `values`: indices into ``dynamic_map(signed=signed)``.
        absmax: (ceil(n/256),) float32, the largest magnitude of each block.

    Raises:
        QuantError: `values` has another type, or a number that is not finite.

    In a block of zeros all codes are 0.
    """
    codes, absmax = torch.ops.ince.quantize_8bit.default(values, signed)
    return codes, absmax


def dequantize_8bit(codes: Tensor, absmax: Tensor, *, signed: bool = True) -> Tensor:
    """Expand what `quantize_8bit` made: ``dynamic_map(signed=signed)[codes] * absmax``.

    Args:
        codes: uint8, n of any shape.
        absmax: (ceil(n/256),) float32.
        signed: as it was.

    Returns:
        float32, in the shape of `codes`.

    Raises:
        QuantError: the parts do not fit each other, or are of another type.
    """
    result: Tensor = torch.ops.ince.dequantize_8bit.default(codes, absmax, signed)
    return result


def num_blocks(num_values: int) -> int:
    """Blocks, and scales, of so many numbers."""
    return -(-num_values // STATE_BLOCKSIZE)


def _check_quantize(values: Tensor, signed: bool) -> None:  # noqa: ARG001
    if values.dtype not in FLOAT_DTYPES:
        raise QuantError(
            "these numbers cannot be coded in 8 bits",
            where="values",
            got=str(values.dtype),
            expected="float32, bfloat16 or float16",
        )


def _check_dequantize(codes: Tensor, absmax: Tensor, signed: bool) -> None:  # noqa: ARG001
    for name, part, dtype in (
        ("codes", codes, torch.uint8),
        ("absmax", absmax, torch.float32),
    ):
        if part.dtype != dtype:
            raise QuantError(
                f"{name} has the wrong type", where=name, got=str(part.dtype), expected=str(dtype)
            )
    expected = (num_blocks(codes.numel()),)
    if tuple(absmax.shape) != expected:
        raise QuantError(
            "absmax has the wrong length",
            where="absmax",
            got=f"shape {tuple(absmax.shape)}",
            expected=f"{expected}: a scale for each {STATE_BLOCKSIZE} of {codes.numel()} codes",
            do="codes and scales must be of one tensor",
        )
    if absmax.device != codes.device:
        raise QuantError(
            "codes and their scales are on two devices",
            got=f"codes on {codes.device}, absmax on {absmax.device}",
            do="move both to one device",
        )


QUANTIZE_8BIT = Operator(
    "quantize_8bit",
    "(Tensor values, bool signed) -> (Tensor codes, Tensor absmax)",
    _check_quantize,
)

DEQUANTIZE_8BIT = Operator(
    "dequantize_8bit",
    "(Tensor codes, Tensor absmax, bool signed) -> Tensor",
    _check_dequantize,
)


@QUANTIZE_8BIT.fake
def _quantized_shapes(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    codes = values.new_empty(values.shape, dtype=torch.uint8)
    return codes, values.new_empty((num_blocks(values.numel()),), dtype=torch.float32)


@DEQUANTIZE_8BIT.fake
def _dequantized_shape(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:  # noqa: ARG001
    return codes.new_empty(codes.shape, dtype=torch.float32)
