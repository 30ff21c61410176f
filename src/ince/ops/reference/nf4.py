"""NF4 in plain PyTorch, as quickly as plain PyTorch allows, in bounded memory.

*Quantization* finds the nearest of sixteen values without a search. [-1, 1] is cut into cells of
1/16, so narrow that none holds two of the fifteen thresholds: the cell of a weight says how many
thresholds lie in lower cells, and one comparison with the cell's own threshold does the rest.

*Dequantization* gathers pairs. A byte is an index into 256 pairs of float32, each moved as one
64-bit word, which halves the gathers and never takes nibbles apart.

Both walk over the tensor in pieces, so that intermediate values stay near the processor and
take a few MiB however large the tensor is.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.ops.codes import nf4_code
from ince.ops.nf4 import DEQUANTIZE_NF4, QUANTIZE_NF4

__all__ = ["dequantize", "quantize"]

# Weights in a piece; a multiple of every block size.
_PIECE = 1 << 18

_NUM_CELLS = 32

# Against division by zero, in the place and at the value of bitsandbytes.
_LEAST_SCALE = 1e-38


def _cell(normalized: Tensor) -> Tensor:
    # Monotone: a sum rounds monotonically, the factor is a power of two, truncation follows.
    return ((normalized + 1.0) * (_NUM_CELLS // 2)).to(torch.int32)


def _make_cells() -> tuple[Tensor, Tensor]:
    code = nf4_code()
    thresholds = (code[:-1] + code[1:]) / 2
    own_cell = _cell(thresholds).long()
    cells = torch.arange(_NUM_CELLS + 1, device="cpu")
    num_below = (own_cell < cells[:, None]).sum(1).to(torch.uint8)
    threshold = torch.full((_NUM_CELLS + 1,), math.inf, dtype=torch.float32, device="cpu")
    threshold[own_cell] = thresholds
    return num_below, threshold


def _make_pairs() -> Tensor:
    byte = torch.arange(256, device="cpu")
    code = nf4_code()
    return torch.stack([code[byte >> 4], code[byte & 15]], dim=1).view(torch.int64).flatten()


_CELLS = _make_cells()
_PAIRS = _make_pairs()


@lru_cache(maxsize=16)
def _cells_on(device: torch.device) -> tuple[Tensor, Tensor]:
    num_below, threshold = _CELLS
    return num_below.to(device), threshold.to(device)


@lru_cache(maxsize=16)
def _pairs_on(device: torch.device) -> Tensor:
    return _PAIRS.to(device)


def _nearest(normalized: Tensor) -> Tensor:
    """Codes, uint8, of values in [-1, 1]: how many thresholds lie strictly below each."""
    num_below, threshold = _cells_on(normalized.device)
    cell = _cell(normalized)
    above = normalized > threshold.index_select(0, cell)
    return num_below.index_select(0, cell).add_(above.view(torch.uint8))


def _normalized(piece: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    """A piece of an even number of weights over the scales of its blocks, which go to `absmax`."""
    num_weights = piece.numel()
    num_blocks, num_left = divmod(num_weights, blocksize)
    num_full = num_weights - num_left
    result = piece.new_zeros(num_weights + num_weights % 2)
    blocks = piece[:num_full].view(num_blocks, blocksize)
    scale = absmax[:num_blocks]
    torch.amax(blocks.abs(), dim=1, out=scale)
    inverse = 1.0 / scale.clamp(min=_LEAST_SCALE)
    torch.mul(blocks, inverse[:, None], out=result[:num_full].view(num_blocks, blocksize))
    if num_left:
        # bitsandbytes keeps the raised scale here, and divides by it.
        absmax[num_blocks] = piece[num_full:].abs().amax().clamp(min=_LEAST_SCALE)
        torch.div(piece[num_full:], absmax[num_blocks], out=result[num_full:num_weights])
    return result.clamp_(-1, 1)


def _refuse_non_finite(weight: Tensor) -> None:
    num_nan = int(weight.isnan().sum())
    num_infinite = int(weight.isinf().sum())
    raise QuantError(
        f"{num_nan + num_infinite} of {weight.numel()} weights are not finite",
        where="weight",
        got=f"{num_nan} NaN, {num_infinite} infinite",
        expected="finite weights",
        do="the source of these weights is damaged; get it again",
    )


@QUANTIZE_NF4.backend("default")
def quantize(weight: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_nf4`."""
    flat = weight.reshape(-1)
    num_weights = flat.numel()
    packed = flat.new_empty(((num_weights + 1) // 2, 1), dtype=torch.uint8)
    absmax = flat.new_empty((-(-num_weights // blocksize),), dtype=torch.float32)
    for start in range(0, num_weights, _PIECE):
        piece = flat[start : start + _PIECE].float()
        scale = absmax[start // blocksize : -(-(start + piece.numel()) // blocksize)]
        normalized = _normalized(piece, scale, blocksize)
        # A maximum carries NaN and infinity along, so that the scales tell for the weights.
        if not bool(scale.isfinite().all()):
            _refuse_non_finite(weight)
        code = _nearest(normalized)
        bytes_ = packed[start // 2 : (start + code.numel()) // 2, 0]
        torch.bitwise_or(code[::2] << 4, code[1::2], out=bytes_)
    return packed, absmax


@DEQUANTIZE_NF4.backend("default")
def dequantize(
    packed: Tensor, absmax: Tensor, blocksize: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """See `ince.ops.dequantize_nf4`."""
    result = packed.new_empty(tuple(shape), dtype=dtype)
    flat = result.view(-1)
    bytes_ = packed.reshape(-1)
    scale = absmax.reshape(-1)
    pairs = _pairs_on(packed.device)
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
