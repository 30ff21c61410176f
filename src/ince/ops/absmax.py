"""Double quantization: the scales of NF4 blocks in 8 bits. The declaration of its two operators.

The mean of the scales is taken off; what is left is cut into blocks of 256, each with a
float32 scale of its own, and coded in the signed 8-bit dynamic map. At 64 weights a block
a weight then takes 4.127 bits instead of 4.5. This is not an FP8 format.

Source: QLoRA, arXiv:2305.14314, section 3; layout and rounding of bitsandbytes.
"""

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.codes import ABSMAX_BLOCKSIZE
from ince.ops.operator import Operator

__all__ = ["DEQUANTIZE_ABSMAX", "QUANTIZE_ABSMAX", "dequantize_absmax", "quantize_absmax"]


def quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Code block scales in 8 bits.

    Args:
        absmax: (m,) float32, m > 0.

    Returns:
        codes: (m,) uint8, indices into `dynamic_map`.
        nested_absmax: (ceil(m/256),) float32.
        offset: () float32, the mean of `absmax`.

    Raises:
        QuantError: `absmax` is empty, of another type, or not finite.

    A scale is looked up on a grid of 65,536 steps over its block's range, as bitsandbytes does
    on the CPU, so that its code is within one grid step of the nearest value.
    """
    codes, nested_absmax, offset = torch.ops.ince.quantize_absmax.default(absmax)
    return codes, nested_absmax, offset


def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    """Expand 8-bit block scales: ``dynamic_map[codes] * nested_absmax + offset``.

    Args:
        codes: (m,) uint8.
        nested_absmax: (ceil(m/256),) float32.
        offset: () float32.

    Returns:
        absmax: (m,) float32.

    Raises:
        QuantError: the parts do not fit each other, or are of another dtype.
    """
    result: Tensor = torch.ops.ince.dequantize_absmax.default(codes, nested_absmax, offset)
    return result


def _check_part(name: str, part: Tensor, dtype: torch.dtype, length: int | None = None) -> None:
    if part.dtype != dtype:
        raise QuantError(
            f"{name} has the wrong type", where=name, got=str(part.dtype), expected=str(dtype)
        )
    if part.numel() == 0 or length not in (None, part.numel()):
        raise QuantError(
            f"{name} has the wrong length",
            where=name,
            got=f"{part.numel()} entries",
            expected="at least 1" if length is None else length,
            do="8-bit scales and the scales of their blocks must be of one tensor",
        )


def _check_quantize(absmax: Tensor) -> None:
    _check_part("absmax", absmax, torch.float32)


def _check_dequantize(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> None:
    _check_part("codes", codes, torch.uint8)
    num_blocks = -(-codes.numel() // ABSMAX_BLOCKSIZE)
    _check_part("nested_absmax", nested_absmax, torch.float32, num_blocks)
    _check_part("offset", offset, torch.float32, 1)


QUANTIZE_ABSMAX = Operator(
    "quantize_absmax",
    "(Tensor absmax) -> (Tensor codes, Tensor nested_absmax, Tensor offset)",
    _check_quantize,
)

DEQUANTIZE_ABSMAX = Operator(
    "dequantize_absmax",
    "(Tensor codes, Tensor nested_absmax, Tensor offset) -> Tensor",
    _check_dequantize,
)


@QUANTIZE_ABSMAX.fake
def _quantized_shapes(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_scales = absmax.numel()
    codes = absmax.new_empty((num_scales,), dtype=torch.uint8)
    nested_absmax = absmax.new_empty((-(-num_scales // ABSMAX_BLOCKSIZE),))
    return codes, nested_absmax, absmax.new_empty(())


@DEQUANTIZE_ABSMAX.fake
def _dequantized_shape(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:  # noqa: ARG001
    return codes.new_empty((codes.numel(),), dtype=torch.float32)
