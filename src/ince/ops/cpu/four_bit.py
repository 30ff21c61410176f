"""Packing and expanding on the CPU, equal to the reference to the bit.

8-bit scales are decoded on the way: a tensor in double quantization is expanded in one pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import active
from ince.ops.cpu.parts import parts_of
from ince.ops.cpu.tables import DTYPES, code_address, factors_address
from ince.ops.four_bit import DEQUANTIZE_4BIT, QUANTIZE_4BIT

__all__ = ["dequantize_4bit", "quantize_4bit"]


@QUANTIZE_4BIT.backend("cpu")
def quantize_4bit(
    weight: Tensor, blocksize: int, quant_type: str, scale_search: bool
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_4bit`."""
    library = active()
    if library is None:
        return reference.quantize_4bit(weight, blocksize, quant_type, scale_search)
    flat = weight.contiguous()
    num_weights = flat.numel()
    packed = flat.new_empty(((num_weights + 1) // 2, 1), dtype=torch.uint8)
    absmax = flat.new_empty((-(-num_weights // blocksize),), dtype=torch.float32)
    is_finite = library.quantize(
        flat.data_ptr(),
        DTYPES[flat.dtype],
        num_weights,
        blocksize,
        code_address(quant_type),
        *(factors_address(blocksize) if scale_search else (None, 0)),
        packed.data_ptr(),
        absmax.data_ptr(),
        torch.get_num_threads(),
    )
    if not is_finite:
        reference.refuse_non_finite(weight)
    return packed, absmax


@DEQUANTIZE_4BIT.backend("cpu")
def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    quant_type: str,
) -> Tensor:
    """See `ince.ops.dequantize_4bit`."""
    library = active()
    if library is None:
        return reference.dequantize_4bit(
            packed, absmax, nested_absmax, nested_offset, blocksize, shape, dtype, quant_type
        )
    parts = parts_of(packed, absmax, nested_absmax, nested_offset, blocksize, quant_type)
    return parts.expand(library, packed.new_empty(tuple(shape), dtype=dtype))
