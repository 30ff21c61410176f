"""Optimizer state in 8 bits in plain PyTorch."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.errors import QuantError
from ince.ops.codes import STATE_BLOCKSIZE, dynamic_map, dynamic_thresholds
from ince.ops.eight_bit import DEQUANTIZE_8BIT, QUANTIZE_8BIT

__all__ = ["coded", "dequantize_8bit", "quantize_8bit", "refuse_not_finite"]


@lru_cache(maxsize=32)
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The map and its thresholds."""
    return dynamic_map(signed=signed).to(device), dynamic_thresholds(signed=signed).to(device)


def _blocks(values: Tensor) -> Tensor:
    """(blocks, 256), the last block filled up with zeros."""
    flat = F.pad(values.reshape(-1), (0, -values.numel() % STATE_BLOCKSIZE))
    return flat.view(flat.numel() // STATE_BLOCKSIZE, STATE_BLOCKSIZE)


def coded(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """`quantize_8bit` of float32, where NaN is the scale of a block that is not finite."""
    _, thresholds = _tables(signed, values.device)
    blocks = _blocks(values)
    absmax = blocks.abs().amax(dim=1)
    absmax = absmax.where(absmax.isfinite(), torch.nan)
    normalized = blocks / absmax[:, None]
    codes = torch.bucketize(normalized, thresholds, out_int32=True)
    # 0/0 of a block of zeros is NaN too.
    codes = codes.masked_fill_(normalized.isnan(), 0).to(torch.uint8)
    return codes.view(-1)[: values.numel()].reshape(values.shape).clone(), absmax


@QUANTIZE_8BIT.backend("default")
def quantize_8bit(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_8bit`."""
    codes, absmax = coded(values.float(), signed)
    if not bool(absmax.isfinite().all()):
        refuse_not_finite(values)
    return codes, absmax


def refuse_not_finite(values: Tensor) -> None:
    """Raise `QuantError`, which says how many numbers are to blame."""
    raise QuantError(
        "numbers that are not finite cannot be coded in 8 bits",
        where="values",
        got=f"{int((~values.isfinite()).sum())} of {values.numel()} are not finite",
        expected="finite numbers",
    )


@DEQUANTIZE_8BIT.backend("default")
def dequantize_8bit(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """See `ince.ops.dequantize_8bit`."""
    values, _ = _tables(signed, codes.device)
    expanded = values.index_select(0, codes.reshape(-1).to(torch.int32))
    blocks = _blocks(expanded) * absmax.reshape(-1, 1)
    return blocks.view(-1)[: codes.numel()].reshape(codes.shape).clone()
