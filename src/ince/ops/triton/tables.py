"""The constants that kernels read from memory, made once for each device."""

from functools import lru_cache

import torch
from torch import Tensor

from ince.ops.codes import code_of, dynamic_map, dynamic_ranks, dynamic_thresholds
from ince.ops.reference.scale_search import factors

__all__ = ["byte_map_on", "code_on", "factors_on", "map_midpoints_on", "map_on", "ranks_on"]


@lru_cache(maxsize=64)
def code_on(quant_type: str, device: torch.device) -> Tensor:
    """(16,) float32: the value of each 4-bit code."""
    return code_of(quant_type).to(device)


@lru_cache(maxsize=64)
def ranks_on(quant_type: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What to make of how many midpoints lie below a number.

    Returns:
        midpoints: (15,) float32, of neighboring values, ascending.
        order: (16,) uint8, the codes in the order of their values.
        values: (16,) float32, those values.
    """
    code = code_of(quant_type)
    order = torch.argsort(code, stable=True)
    values = code[order]
    midpoints = (values[:-1] + values[1:]) / 2
    return midpoints.to(device), order.to(torch.uint8).to(device), values.to(device)


@lru_cache(maxsize=64)
def factors_on(blocksize: int, device: torch.device) -> Tensor:
    """(8,) or (16,) float32: the candidates of a search for scales."""
    return torch.tensor(factors(blocksize), dtype=torch.float32, device="cpu").to(device)


@lru_cache(maxsize=16)
def map_on(device: torch.device) -> Tensor:
    """(256,) float32: the value of each 8-bit code of a scale."""
    return dynamic_map().to(device)


@lru_cache(maxsize=16)
def map_midpoints_on(device: torch.device) -> Tensor:
    """(255,) float32: the midpoints of neighboring values of `map_on`."""
    code = dynamic_map()
    return (0.5 * (code[:-1] + code[1:])).to(device)


@lru_cache(maxsize=16)
def byte_map_on(signed: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A dynamic map, and how numbers are looked up in it.

    Returns:
        values: (256,) float32.
        thresholds: (256,) float32, the last infinite.
        ranks: (2, places) uint8; see `ince.ops.codes.dynamic_ranks`.
    """
    thresholds = dynamic_thresholds(signed=signed)
    thresholds = torch.cat([thresholds, thresholds.new_full((1,), torch.inf)])
    parts = dynamic_map(signed=signed), thresholds, dynamic_ranks(signed=signed)
    values, thresholds, ranks = (part.to(device) for part in parts)
    return values, thresholds, ranks
