"""Double quantization in plain PyTorch: scales are few, so nothing here needs to be quick."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.errors import QuantError
from ince.ops.absmax import DEQUANTIZE_ABSMAX, QUANTIZE_ABSMAX
from ince.ops.codes import ABSMAX_BLOCKSIZE, dynamic_map

__all__ = ["dequantize_absmax", "quantize_absmax"]

# Steps of the grid over [-1, 1] on which bitsandbytes looks codes up.
_LAST_STEP = 65_535

_MAP = dynamic_map()


@lru_cache(maxsize=16)
def _map_on(device: torch.device) -> Tensor:
    return _MAP.to(device)


def _blocks(scales: Tensor) -> Tensor:
    """Scales as (blocks, 256), the last block filled up with zeros."""
    return F.pad(scales, (0, -scales.numel() % ABSMAX_BLOCKSIZE)).view(-1, ABSMAX_BLOCKSIZE)


@QUANTIZE_ABSMAX.backend("default")
def quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `ince.ops.quantize_absmax`."""
    scales = absmax.reshape(-1)
    offset = scales.mean()
    centered = _blocks(scales - offset)
    nested_absmax = centered.abs().amax(dim=1)
    if not bool(nested_absmax.isfinite().all()):
        raise QuantError(
            "block scales are not finite, or too large to be summed",
            where="absmax",
            got=f"{int((~scales.isfinite()).sum())} of {scales.numel()} not finite, mean {offset}",
            expected="finite scales with a finite mean in float32",
            do="quantize without double quantization, or check the weights",
        )
    code = _map_on(absmax.device)
    thresholds = 0.5 * (code[:-1] + code[1:])
    # 1/0 of a zero block would be NaN below; its codes are overwritten.
    is_zero = nested_absmax == 0
    inverse = 1.0 / nested_absmax.masked_fill(is_zero, 1.0)
    normalized = (centered * inverse[:, None]).clamp_(-1, 1)
    step = ((normalized + 1.0) * 0.5 * _LAST_STEP + 0.5).to(torch.int32)
    on_grid = step.float() * 2.0 / _LAST_STEP - 1.0
    codes = torch.bucketize(on_grid, thresholds, out_int32=True).to(torch.uint8)
    codes[is_zero] = 0
    return codes.view(-1)[: scales.numel()].clone(), nested_absmax, offset


@DEQUANTIZE_ABSMAX.backend("default")
def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    """See `ince.ops.dequantize_absmax`."""
    num_scales = codes.numel()
    values = _map_on(codes.device).index_select(0, codes.reshape(-1).to(torch.int32))
    blocks = _blocks(values).mul_(nested_absmax.reshape(-1, 1))
    return blocks.view(-1)[:num_scales].add(offset.reshape(()))
