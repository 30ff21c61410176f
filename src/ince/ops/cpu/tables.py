"""The constants that the kernels read, in memory of their own for as long as the process runs."""

import ctypes
import math
from functools import lru_cache

import torch

from ince.ops.codes import (
    NUM_PLACES,
    code_of,
    dynamic_map,
    dynamic_ranks,
    dynamic_thresholds,
)
from ince.ops.reference.scale_search import factors

__all__ = ["DTYPES", "byte_map_address", "code_address", "factors_address", "map_address"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of the dtypes, as in kernels/kernels.h."""


class _Code(ctypes.Structure):
    """`ince::Code` of kernels/kernels.h."""

    _fields_ = (
        ("values", ctypes.c_float * 16),
        ("thresholds", ctypes.c_float * 15),
        ("by_rank", ctypes.c_uint8 * 16),
        ("zero", ctypes.c_uint8),
    )


class _ByteMap(ctypes.Structure):
    """`ince::ByteMap` of kernels/training.h."""

    _fields_ = (
        ("values", ctypes.c_float * 256),
        ("thresholds", ctypes.c_float * 256),
        ("ranks", (ctypes.c_uint8 * NUM_PLACES) * 2),
        ("unused", ctypes.c_uint8 * 4),
    )


_KEPT: list[object] = []


@lru_cache(maxsize=16)
def code_address(quant_type: str) -> int:
    """Where the sixteen values, their midpoints and their order lie."""
    values = code_of(quant_type)
    order = torch.argsort(values, stable=True)
    ascending = values[order]
    midpoints = ((ascending[:-1] + ascending[1:]) / 2).tolist()
    # What is compared lies in [-1, 1], or a rounding error above 1: nothing is above 1.
    thresholds = [math.inf if midpoint >= 1 else midpoint for midpoint in midpoints]
    rank_of_zero = sum(threshold < 0 for threshold in thresholds)
    by_rank = order.tolist()
    code = _Code(tuple(values.tolist()), tuple(thresholds), tuple(by_rank), by_rank[rank_of_zero])
    _KEPT.append(code)
    return ctypes.addressof(code)


@lru_cache(maxsize=16)
def factors_address(blocksize: int) -> tuple[int, int]:
    """Where the candidates of the scale search lie, and how many they are."""
    candidates = factors(blocksize)
    kept = (ctypes.c_float * len(candidates))(*candidates)
    _KEPT.append(kept)
    return ctypes.addressof(kept), len(candidates)


@lru_cache(maxsize=1)
def map_address() -> int:
    """Where the 256 values of 8-bit scales lie."""
    values = dynamic_map()
    _KEPT.append(values)
    return values.data_ptr()


@lru_cache(maxsize=2)
def byte_map_address(signed: bool) -> int:
    """Where a dynamic map lies, with what its codes are found by."""
    row = ctypes.c_uint8 * NUM_PLACES
    kept = _ByteMap(
        tuple(dynamic_map(signed=signed).tolist()),
        (*dynamic_thresholds(signed=signed).tolist(), math.inf),
        (row * 2)(*(row(*each) for each in dynamic_ranks(signed=signed).tolist())),
    )
    _KEPT.append(kept)
    return ctypes.addressof(kept)
