"""Attention on the CPU: tiles that the mask forbids cost nothing, and no score is kept.

Memory is that of the operands for each thread, whatever the mask. Heads wider than `_MAX_WIDTH`,
and empty tensors, are left to the reference.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.attention import (
    ATTENTION_TILES,
    PACKED_ATTENTION,
    PACKED_ATTENTION_BACKWARD,
    empty_places_first,
    empty_tiles,
)
from ince.ops.cpu.library import active
from ince.ops.cpu.tables import DTYPES

__all__ = [
    "attention_tiles",
    "is_compiled_for",
    "packed_attention",
    "packed_attention_backward",
]

# Of kernels/attention.h.
_MAX_WIDTH = 256


class _Rows(ctypes.Structure):
    """`ince::Rows`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("place_stride", ctypes.c_int64),
    )


_TENSORS = ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")


class _Arguments(ctypes.Structure):
    """`ince::AttentionArgs`."""

    _fields_ = (
        *((name, _Rows) for name in _TENSORS),
        ("mask", ctypes.c_void_p),
        ("mask_batch_stride", ctypes.c_int64),
        ("mask_query_stride", ctypes.c_int64),
        ("tiles", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_key_heads", ctypes.c_int64),
        ("num_queries", ctypes.c_int64),
        ("num_keys", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


def is_compiled_for(q: Tensor) -> bool:
    """Whether queries of this device, type and width are computed without the reference.

    The reference takes memory for all scores: for long rows something else is better then.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in DTYPES
        and q.shape[-1] <= _MAX_WIDTH
        and active() is not None
    )


@ATTENTION_TILES.backend("cpu")
def attention_tiles(mask: Tensor) -> Tensor:
    """See `ince.ops.attention_tiles`."""
    library = active()
    if library is None or mask.numel() == 0:
        return reference.attention_tiles(mask)
    mask = _side_by_side(mask)
    tiles = empty_tiles(mask)
    library.attention_tiles(
        mask.data_ptr(),
        mask.stride(0),
        mask.stride(2),
        mask.shape[0],
        *mask.shape[2:],
        tiles.data_ptr(),
        torch.get_num_threads(),
    )
    return tiles


@PACKED_ATTENTION.backend("cpu")
def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tiles: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.packed_attention`."""
    library = active()
    if library is None or not _fits(q, k):
        return reference.packed_attention(q, k, v, mask, tiles, scale)
    out, lse = empty_places_first(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _call(library.attention, lse, mask, tiles, scale, q=q, k=k, v=v, out=out)
    return out, lse


@PACKED_ATTENTION_BACKWARD.backend("cpu")
def packed_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    tiles: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ince.ops.packed_attention_backward`."""
    library = active()
    if library is None or not _fits(q, k):
        return reference.packed_attention_backward(grad_out, q, k, v, out, lse, mask, tiles, scale)
    grads = empty_places_first(q), empty_places_first(k), empty_places_first(v)
    results = dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))
    operands = {"q": q, "k": k, "v": v, "out": out, "grad_out": grad_out}
    _call(library.attention_backward, lse, mask, tiles, scale, **operands, **results)
    return grads


def _fits(q: Tensor, k: Tensor) -> bool:
    return q.numel() > 0 and k.numel() > 0 and q.shape[-1] <= _MAX_WIDTH


def _side_by_side(tensor: Tensor) -> Tensor:
    """The tensor, or a copy whose numbers of a place lie side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _call(
    function: Callable[..., int],
    lse: Tensor,
    mask: Tensor,
    tiles: Tensor,
    scale: float,
    **tensors: Tensor,
) -> None:
    # Copies live until the call is over.
    tensors = {name: _side_by_side(tensor) for name, tensor in tensors.items()}
    mask, tiles, lse = _side_by_side(mask), tiles.contiguous(), lse.contiguous()
    q, k = tensors["q"], tensors["k"]
    given: dict[str, Any] = {
        name: _Rows(tensor.data_ptr(), *tensor.stride()[:3]) for name, tensor in tensors.items()
    }
    arguments = _Arguments(
        **given,
        mask=mask.data_ptr(),
        mask_batch_stride=mask.stride(0),
        mask_query_stride=mask.stride(2),
        tiles=tiles.data_ptr(),
        lse=lse.data_ptr(),
        batch=q.shape[0],
        num_heads=q.shape[1],
        num_key_heads=k.shape[1],
        num_queries=q.shape[2],
        num_keys=k.shape[2],
        width=q.shape[3],
        dtype=DTYPES[q.dtype],
        scale=scale,
    )
    if not function(ctypes.byref(arguments), torch.get_num_threads()):
        raise MemoryError("there is no memory for attention's operands")
