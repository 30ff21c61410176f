"""Which of sixteen values is nearest: the one place where weights become codes."""

from functools import lru_cache

import torch
from torch import Tensor

from ince.ops.codes import code_of

__all__ = ["nearest_code", "nearest_value"]


@lru_cache(maxsize=16)
def _tables(quant_type: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Fifteen midpoints, ascending; the sixteen codes in the order of their values; those."""
    code = code_of(quant_type)
    order = torch.argsort(code, stable=True)
    values = code[order]
    midpoints = (values[:-1] + values[1:]) / 2
    return midpoints.to(device), order.to(torch.uint8).to(device), values.to(device)


def nearest_code(normalized: Tensor, quant_type: str) -> Tensor:
    """Codes, uint8, of values in [-1, 1]: how many midpoints are strictly below tells which."""
    midpoints, order, _ = _tables(quant_type, normalized.device)
    return order.index_select(0, torch.bucketize(normalized, midpoints, out_int32=True))


def nearest_value(normalized: Tensor, quant_type: str) -> Tensor:
    """What `nearest_code` stands for, float32, in the shape of `normalized`.

    Values beyond ±1 have the outermost ones nearest.
    """
    midpoints, _, values = _tables(quant_type, normalized.device)
    return values[torch.bucketize(normalized, midpoints, out_int32=True)]
