"""Quantization and back on a GPU: tensors in, kernels launched, tensors out.

Nothing here looks for a GPU: the kernels run where their tensors are, and through Triton's
interpreter on the CPU. Importing this needs Triton; `backend` does so at the first call.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.codes import ABSMAX_BLOCKSIZE
from ince.ops.reference import refuse_non_finite
from ince.ops.triton.kernels import (
    code_absmax_kernel,
    expand_absmax_kernel,
    expand_kernel,
    quantize_kernel,
)
from ince.ops.triton.start import start
from ince.ops.triton.tables import code_on, factors_on, map_midpoints_on, map_on, ranks_on

__all__ = [
    "dequantize_4bit",
    "dequantize_absmax",
    "quantize_4bit",
    "quantize_absmax",
    "words_of",
]

# Bytes that a program expands: a word for each of its 256 threads, which write eight weights each,
# 16 bytes in 16 bits, without moving them between threads first.
_TILE_BYTES = 1024

# Weights that a program codes: a block of the largest size.
_QUANTIZE_WEIGHTS = 4096

# Scales that a program expands.
_SCALES = 1024


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
    """See `ince.ops.dequantize_4bit`; scales in 8 bits are expanded on the way."""
    out = packed.new_empty(tuple(shape), dtype=dtype)
    num_weights = math.prod(shape)
    columns = min(blocksize // 2, _TILE_BYTES)
    packed, absmax = packed.contiguous().view(-1), absmax.contiguous()
    nested_absmax = None if nested_absmax is None else nested_absmax.contiguous()

    def launch(first_tile: int, num_tiles: int, whole: bool) -> None:
        start(
            expand_kernel,
            (num_tiles,),
            words_of(packed[: num_tiles * _TILE_BYTES]) if whole else packed,
            absmax,
            nested_absmax,
            nested_offset,
            map_on(packed.device),
            code_on(quant_type, packed.device),
            out,
            first_tile,
            num_weights,
            WHOLE=whole,
            NESTED=nested_absmax is not None,
            BLOCKSIZE=blocksize,
            ROWS=_TILE_BYTES // columns,
            COLS=columns,
            num_warps=8,
        )

    num_whole, num_left = divmod(num_weights, 2 * _TILE_BYTES)
    with torch.cuda.device_of(packed):
        if num_whole:
            launch(0, num_whole, whole=True)
        if num_left:
            launch(num_whole, 1, whole=False)
    return out


def quantize_4bit(
    weight: Tensor, blocksize: int, quant_type: str, scale_search: bool
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_4bit`."""
    flat = weight.contiguous().view(-1)
    num_weights = flat.numel()
    packed = flat.new_empty(((num_weights + 1) // 2, 1), dtype=torch.uint8)
    num_full, num_left = divmod(num_weights, blocksize)
    absmax = flat.new_empty((num_full + (num_left > 0),), dtype=torch.float32)
    midpoints, order, values = ranks_on(quant_type, flat.device)
    factors = factors_on(blocksize, flat.device) if scale_search else None
    rows = _QUANTIZE_WEIGHTS // blocksize

    def launch(first_block: int, num_blocks: int, end: int, short: bool) -> None:
        start(
            quantize_kernel,
            (-(-num_blocks // rows),),
            flat,
            midpoints,
            order,
            values,
            factors,
            packed,
            absmax,
            first_block,
            end,
            SHORT=short,
            NUM_FACTORS=0 if factors is None else factors.numel(),
            BLOCKSIZE=blocksize,
            ROUNDS=blocksize.bit_length() - 1,
            ROWS=1 if short else rows,
            num_warps=4,
        )

    with torch.cuda.device_of(flat):
        if num_full:
            launch(0, num_full, num_full * blocksize, short=False)
        if num_left:
            launch(num_full, 1, num_weights, short=True)
    if not bool(absmax.isfinite().all()):
        refuse_non_finite(weight)
    return packed, absmax


def quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `ince.ops.quantize_absmax`. The mean is the device's own, as in the reference."""
    scales = absmax.contiguous().view(-1)
    num_scales = scales.numel()
    offset = scales.mean()
    num_blocks = -(-num_scales // ABSMAX_BLOCKSIZE)
    codes = scales.new_empty((num_scales,), dtype=torch.uint8)
    nested_absmax = scales.new_empty((num_blocks,))
    with torch.cuda.device_of(scales):
        start(
            code_absmax_kernel,
            (num_blocks,),
            scales,
            offset,
            map_midpoints_on(scales.device),
            codes,
            nested_absmax,
            num_scales,
            BLOCKSIZE=ABSMAX_BLOCKSIZE,
            num_warps=4,
        )
    if not bool(nested_absmax.isfinite().all()):
        raise QuantError(
            "block scales are not finite, or too large to be summed",
            where="absmax",
            got=f"{int((~scales.isfinite()).sum())} of {num_scales} not finite, mean {offset}",
            expected="finite scales with a finite mean in float32",
            do="quantize without double quantization, or check the weights",
        )
    return codes, nested_absmax, offset


def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    """See `ince.ops.dequantize_absmax`."""
    num_scales = codes.numel()
    out = codes.new_empty((num_scales,), dtype=torch.float32)
    with torch.cuda.device_of(codes):
        start(
            expand_absmax_kernel,
            (-(-num_scales // _SCALES),),
            codes.contiguous(),
            nested_absmax.contiguous(),
            offset,
            map_on(codes.device),
            out,
            num_scales,
            TILE=_SCALES,
            num_warps=4,
        )
    return out


def words_of(tensor: Tensor) -> Tensor:
    """The bytes of `tensor` as words of 32 bits; copied where they do not begin at one."""
    flat = tensor.contiguous().view(-1)
    return (flat if flat.data_ptr() % 4 == 0 else flat.clone()).view(torch.int32)
