"""Four bits a weight and a scale per block: quantization and back. Declared here, run elsewhere.

The layout is that of bitsandbytes, bit for bit. Blocks are flat and row-major over the whole
tensor and may cross rows; the last may be short. Two codes share a byte, the first weight in
the high nibble; an odd last nibble holds the code of zero.

Source: QLoRA, arXiv:2305.14314.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.operator import Operator
from ince.ops.packed import FLOAT_DTYPES, check_blocksize, check_parts, check_quant_type

__all__ = ["DEQUANTIZE_4BIT", "QUANTIZE_4BIT", "dequantize_4bit", "quantize_4bit"]


def quantize_4bit(
    weight: Tensor, blocksize: int = 64, quant_type: str = "nf4", *, scale_search: bool = False
) -> tuple[Tensor, Tensor]:
    """Code each weight as the nearest of sixteen values times the scale of its block.

    Args:
        weight: of n > 0 weights, any shape; float32, bfloat16 or float16.
        blocksize: weights that share a scale; one of `BLOCKSIZES`.
        quant_type: the sixteen values; one of `QUANT_TYPES`.
        scale_search: store the scale of least squared error instead of the largest magnitude.

    Returns:
        packed: (ceil(n/2), 1) uint8.
        absmax: (ceil(n/blocksize),) float32, the scale of each block: its largest magnitude,
            unless searched. That of a zero block is 0; of a short last block, at least 1e-38,
            as bitsandbytes has it.

    Raises:
        QuantError: `weight` is empty, of another dtype or not finite; unknown block size or type.

    Arithmetic is float32. A weight midway between two values takes the lower one.
    """
    packed, absmax = torch.ops.ince.quantize_4bit.default(
        weight, blocksize, quant_type, scale_search
    )
    return packed, absmax


def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    blocksize: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    quant_type: str = "nf4",
    *,
    nested_absmax: Tensor | None = None,
    nested_offset: Tensor | None = None,
) -> Tensor:
    """Expand codes to floats: ``w = code[q] * absmax``.

    Args:
        packed, absmax, nested_absmax, nested_offset: see `ince.ops.packed`.
        blocksize: weights that share a scale.
        shape: of the result, n weights.
        dtype: of the result. Arithmetic is float32, rounded once.
        quant_type: the sixteen values.

    Raises:
        QuantError: the parts do not fit each other, or are of another dtype.
    """
    result: Tensor = torch.ops.ince.dequantize_4bit.default(
        packed, absmax, nested_absmax, nested_offset, blocksize, list(shape), dtype, quant_type
    )
    return result


def _check_quantize(
    weight: Tensor,
    blocksize: int,
    quant_type: str,
    scale_search: bool,  # noqa: ARG001  the operator's signature
) -> None:
    if weight.dtype not in FLOAT_DTYPES:
        raise QuantError(
            "only float weights can be quantized to four bits",
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
    check_blocksize(blocksize)
    check_quant_type(quant_type)


def _check_dequantize(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    quant_type: str,
) -> None:
    if dtype not in FLOAT_DTYPES:
        raise QuantError(
            "4-bit weights cannot be expanded to this type",
            where="dtype",
            got=str(dtype),
            expected="float32, bfloat16 or float16",
        )
    check_parts(packed, absmax, nested_absmax, nested_offset, blocksize, shape, quant_type)


QUANTIZE_4BIT = Operator(
    "quantize_4bit",
    "(Tensor weight, int blocksize, str quant_type, bool scale_search)"
    " -> (Tensor packed, Tensor absmax)",
    _check_quantize,
)

DEQUANTIZE_4BIT = Operator(
    "dequantize_4bit",
    "(Tensor packed, Tensor absmax, Tensor? nested_absmax, Tensor? nested_offset,"
    " int blocksize, SymInt[] shape, ScalarType dtype, str quant_type) -> Tensor",
    _check_dequantize,
)


@QUANTIZE_4BIT.fake
def _quantized_shapes(
    weight: Tensor,
    blocksize: int,
    quant_type: str,  # noqa: ARG001  the operator's signature
    scale_search: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    num_weights = weight.numel()
    packed = weight.new_empty(((num_weights + 1) // 2, 1), dtype=torch.uint8)
    absmax = weight.new_empty((-(-num_weights // blocksize),), dtype=torch.float32)
    return packed, absmax


@DEQUANTIZE_4BIT.fake
def _dequantized_shape(
    packed: Tensor,
    absmax: Tensor,  # noqa: ARG001  the operator's signature
    nested_absmax: Tensor | None,  # noqa: ARG001
    nested_offset: Tensor | None,  # noqa: ARG001
    blocksize: int,  # noqa: ARG001
    shape: Sequence[int],
    dtype: torch.dtype,
    quant_type: str,  # noqa: ARG001
) -> Tensor:
    return packed.new_empty(tuple(shape), dtype=dtype)
