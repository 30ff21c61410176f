"""NF4: four bits a weight and one float32 scale per block. The declaration of its two operators.

The layout is that of bitsandbytes, bit for bit. Blocks are flat and row-major over the whole
tensor and may cross rows; the last may be short. Two codes share a byte, the first weight in
the high nibble; an odd last nibble holds 7, the code of zero.

Source: QLoRA, arXiv:2305.14314.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.codes import BLOCKSIZES
from ince.ops.operator import Operator

__all__ = ["DEQUANTIZE_NF4", "FLOAT_DTYPES", "QUANTIZE_NF4", "dequantize_nf4", "quantize_nf4"]

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantize_nf4(weight: Tensor, blocksize: int = 64) -> tuple[Tensor, Tensor]:
    """Code each weight as the nearest of sixteen values times the largest of its block.

    Args:
        weight: of n > 0 weights, any shape; float32, bfloat16 or float16.
        blocksize: weights that share a scale; one of `BLOCKSIZES`.

    Returns:
        packed: (ceil(n/2), 1) uint8.
        absmax: (ceil(n/blocksize),) float32, the largest magnitude of each block. That of a
            zero block is 0; of a short last block, at least 1e-38, as bitsandbytes has it.

    Raises:
        QuantError: `weight` is empty, of another dtype or not finite; unknown block size.

    Arithmetic is float32. A weight midway between two values takes the lower one.
    """
    packed, absmax = torch.ops.ince.quantize_nf4.default(weight, blocksize)
    return packed, absmax


def dequantize_nf4(
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Expand NF4 codes to floats: ``w = NF4_CODE[q] * absmax``.

    Args:
        packed: ceil(n/2) bytes, uint8, as `quantize_nf4` makes them.
        absmax: (ceil(n/blocksize),) float32.
        blocksize: weights that share a scale.
        shape: of the result, n weights.
        dtype: of the result. Arithmetic is float32, rounded once.

    Raises:
        QuantError: the parts do not fit each other, or are of another dtype.
    """
    result: Tensor = torch.ops.ince.dequantize_nf4.default(
        packed, absmax, blocksize, list(shape), dtype
    )
    return result


def _check_quantize(weight: Tensor, blocksize: int) -> None:
    if weight.dtype not in FLOAT_DTYPES:
        raise QuantError(
            "only float weights can be quantized to NF4",
            where="weight",
            got=str(weight.dtype),
            expected="float32, bfloat16 or float16",
            do="convert it to one of these first",
        )
    if weight.numel() == 0:
        raise QuantError(
            "an empty tensor cannot be quantized",
            where="weight",
            got=f"shape {tuple(weight.shape)}",
            expected="at least one weight",
        )
    _check_blocksize(blocksize)


def _check_blocksize(blocksize: int) -> None:
    if blocksize not in BLOCKSIZES:
        raise QuantError(
            "no such block size",
            where="blocksize",
            got=blocksize,
            expected=", ".join(map(str, BLOCKSIZES)),
        )


def _check_dequantize(
    packed: Tensor, absmax: Tensor, blocksize: int, shape: Sequence[int], dtype: torch.dtype
) -> None:
    _check_blocksize(blocksize)
    if dtype not in FLOAT_DTYPES:
        raise QuantError(
            "NF4 weights cannot be expanded to this type",
            where="dtype",
            got=str(dtype),
            expected="float32, bfloat16 or float16",
        )
    num_weights = math.prod(shape)
    if any(size < 0 for size in shape) or num_weights == 0:
        raise QuantError(
            "not the shape of a quantized tensor",
            where="shape",
            got=tuple(shape),
            expected="sizes of at least 1",
        )
    parts = (
        ("packed", packed, torch.uint8, (num_weights + 1) // 2),
        ("absmax", absmax, torch.float32, -(-num_weights // blocksize)),
    )
    for name, part, part_dtype, length in parts:
        if part.dtype != part_dtype:
            raise QuantError(
                f"{name} has the wrong type",
                where=name,
                got=str(part.dtype),
                expected=str(part_dtype),
                do="scales in 8 bits go through dequantize_absmax first"
                if name == "absmax" and part.dtype == torch.uint8
                else None,
            )
        if part.numel() != length:
            raise QuantError(
                f"{name} has the wrong length",
                where=name,
                got=f"{part.numel()} entries",
                expected=f"{length} for shape {tuple(shape)} and blocks of {blocksize}",
                do="packed weights, scales, shape and block size must be of one tensor",
            )
    if packed.device != absmax.device:
        raise QuantError(
            "packed weights and their scales are on two devices",
            got=f"packed on {packed.device}, absmax on {absmax.device}",
            do="move both to one device",
        )


QUANTIZE_NF4 = Operator(
    "quantize_nf4",
    "(Tensor weight, int blocksize) -> (Tensor packed, Tensor absmax)",
    _check_quantize,
)

DEQUANTIZE_NF4 = Operator(
    "dequantize_nf4",
    "(Tensor packed, Tensor absmax, int blocksize, SymInt[] shape, ScalarType dtype) -> Tensor",
    _check_dequantize,
)


@QUANTIZE_NF4.fake
def _quantized_shapes(weight: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    num_weights = weight.numel()
    packed = weight.new_empty(((num_weights + 1) // 2, 1), dtype=torch.uint8)
    absmax = weight.new_empty((-(-num_weights // blocksize),), dtype=torch.float32)
    return packed, absmax


@DEQUANTIZE_NF4.fake
def _dequantized_shape(
    packed: Tensor,
    absmax: Tensor,  # noqa: ARG001  the operator's signature
    blocksize: int,  # noqa: ARG001
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(tuple(shape), dtype=dtype)
