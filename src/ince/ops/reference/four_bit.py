"""Four bits in plain PyTorch, in bounded memory: the definition that other backends equal.

*Quantization*: the full blocks are multiplied by ``1 / max(absmax, 1e-38)``, a short last one is
divided by its scale, all clamped to ±1; how many midpoints between neighboring values lie
strictly below a weight tells its code. `scale_search` may put another scale in absmax's place.

*Dequantization* gathers pairs. A byte is an index into 256 pairs of float32, each moved as one
64-bit word, which halves the gathers and never takes nibbles apart.

Both walk over the tensor in pieces, so that intermediate values stay near the processor and
take a few MiB however large the tensor is.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.codes import code_of
from ince.ops.four_bit import DEQUANTIZE_4BIT, QUANTIZE_4BIT
from ince.ops.reference.absmax import dequantize_absmax
from ince.ops.reference.nearest import nearest_code
from ince.ops.reference.scale_search import search_scales

__all__ = ["dequantize_4bit", "quantize_4bit", "refuse_non_finite"]

# Weights in a piece; a multiple of every block size.
_PIECE = 1 << 18

# Against division by zero, in the place and at the value of bitsandbytes.
_LEAST_SCALE = 1e-38


@lru_cache(maxsize=16)
def _pairs(quant_type: str, device: torch.device) -> Tensor:
    byte = torch.arange(256, device="cpu")
    code = code_of(quant_type)
    pairs = torch.stack([code[byte >> 4], code[byte & 15]], dim=1).view(torch.int64).flatten()
    return pairs.to(device)


def _largest(piece: Tensor, absmax: Tensor, blocksize: int) -> None:
    """The largest magnitude of each block of a piece, into `absmax`."""
    num_blocks, num_left = divmod(piece.numel(), blocksize)
    blocks = piece[: num_blocks * blocksize].view(num_blocks, blocksize)
    torch.amax(blocks.abs(), dim=1, out=absmax[:num_blocks])
    if num_left:
        # bitsandbytes keeps the raised scale here, and divides by it.
        absmax[num_blocks] = piece[-num_left:].abs().amax().clamp(min=_LEAST_SCALE)


def _normalized(piece: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    """A piece over the scales of its blocks, clamped to ±1, made even by a zero."""
    num_weights = piece.numel()
    num_blocks, num_left = divmod(num_weights, blocksize)
    num_full = num_weights - num_left
    result = piece.new_zeros(num_weights + num_weights % 2)
    blocks = piece[:num_full].view(num_blocks, blocksize)
    inverse = 1.0 / absmax[:num_blocks].clamp(min=_LEAST_SCALE)
    torch.mul(blocks, inverse[:, None], out=result[:num_full].view(num_blocks, blocksize))
    if num_left:
        torch.div(piece[num_full:], absmax[num_blocks], out=result[num_full:num_weights])
    return result.clamp_(-1, 1)


def refuse_non_finite(weight: Tensor) -> None:
    """Raise the `QuantError` of weights of which some are not finite."""
    num_nan = int(weight.isnan().sum())
    num_infinite = int(weight.isinf().sum())
    raise QuantError(
        f"{num_nan + num_infinite} of {weight.numel()} weights are not finite",
        where="weight",
        got=f"{num_nan} NaN, {num_infinite} infinite",
        expected="finite weights",
        do="the source of these weights is damaged; get it again",
    )


@QUANTIZE_4BIT.backend("default")
def quantize_4bit(
    weight: Tensor, blocksize: int, quant_type: str, scale_search: bool
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_4bit`."""
    flat = weight.reshape(-1)
    num_weights = flat.numel()
    packed = flat.new_empty(((num_weights + 1) // 2, 1), dtype=torch.uint8)
    absmax = flat.new_empty((-(-num_weights // blocksize),), dtype=torch.float32)
    for start in range(0, num_weights, _PIECE):
        piece = flat[start : start + _PIECE].float()
        scale = absmax[start // blocksize : -(-(start + piece.numel()) // blocksize)]
        _largest(piece, scale, blocksize)
        # A maximum carries NaN and infinity along, so that the scales tell for the weights.
        if not bool(scale.isfinite().all()):
            refuse_non_finite(weight)
        normalized = _normalized(piece, scale, blocksize)
        if scale_search:
            search_scales(normalized, scale, blocksize, quant_type)
            normalized = _normalized(piece, scale, blocksize)
        code = nearest_code(normalized, quant_type)
        bytes_ = packed[start // 2 : (start + code.numel()) // 2, 0]
        torch.bitwise_or(code[::2] << 4, code[1::2], out=bytes_)
    return packed, absmax


@DEQUANTIZE_4BIT.backend("default")
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
    if nested_absmax is not None and nested_offset is not None:
        absmax = dequantize_absmax(absmax, nested_absmax, nested_offset)
    result = packed.new_empty(tuple(shape), dtype=dtype)
    flat = result.view(-1)
    bytes_ = packed.reshape(-1)
    scale = absmax.reshape(-1)
    pairs = _pairs(quant_type, packed.device)
    num_weights = flat.numel()
    for start in range(0, num_weights, _PIECE):
        stop = min(start + _PIECE, num_weights)
        index = bytes_[start // 2 : (stop + 1) // 2].to(torch.int32)
        piece = pairs.index_select(0, index).view(torch.float32)[: stop - start]
        num_blocks, num_left = divmod(stop - start, blocksize)
        first = start // blocksize
        blocks = piece[: num_blocks * blocksize].view(num_blocks, blocksize)
        blocks.mul_(scale[first : first + num_blocks, None])
        if num_left:
            piece[num_blocks * blocksize :].mul_(scale[first + num_blocks])
        flat[start:stop] = piece
    return result
