"""Rotary position embedding on the CPU: queries and keys in one pass, at any strides."""

import ctypes

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import Library, active
from ince.ops.cpu.tables import DTYPES
from ince.ops.rotary import ROPE, ROPE_, ROPE_INPUT_GRAD

__all__ = ["rope", "rope_", "rope_input_grad"]

# kMaxRotated of kernels/training.h.
_MAX_ROTATED = 1024


class _Heads(ctypes.Structure):
    """`ince::Heads` of kernels/training.h."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("to", ctypes.c_void_p),
        ("num_heads", ctypes.c_int64),
        ("source_strides", ctypes.c_int64 * 3),
        ("to_strides", ctypes.c_int64 * 3),
    )


@ROPE.backend("cpu")
def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rope`."""
    library = _library_for(cos)
    if library is None:
        return reference.rope(q, k, cos, sin)
    turned = [_empty_swapped(x) for x in (q, k)]
    _turn(library, (q, k), [each.transpose(1, 2) for each in turned], cos, sin, inverse=False)
    return turned[0], turned[1]


@ROPE_INPUT_GRAD.backend("cpu")
def rope_input_grad(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ince.ops.rope_input_grad`."""
    library = _library_for(cos)
    if library is None:
        return reference.rope_input_grad(dq, dk, cos, sin)
    grads = [_empty_swapped(x) for x in (dq, dk)]
    _turn(library, (dq.transpose(1, 2), dk.transpose(1, 2)), grads, cos, sin, inverse=True)
    return grads[0], grads[1]


@ROPE_.backend("cpu")
def rope_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> None:
    """See `ince.ops.rope_`."""
    library = _library_for(cos)
    if library is None:
        reference.rope_(q, k, cos, sin, inverse)
        return
    pieces = [_without_gaps(x) for x in (q, k)]
    _turn(library, pieces, pieces, cos, sin, inverse=inverse)
    for piece, x in zip(pieces, (q, k), strict=True):
        if piece is not x:
            x.copy_(piece)


def _library_for(cos: Tensor) -> Library | None:
    return active() if cos.shape[-1] <= _MAX_ROTATED else None


def _empty_swapped(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3]))


def _without_gaps(x: Tensor) -> Tensor:
    """`x`, or a copy where the numbers of a head do not lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _turn(
    library: Library,
    sources: tuple[Tensor, Tensor] | list[Tensor],
    results: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    *,
    inverse: bool,
) -> None:
    """All of `sources` and `results` are (B, L, H, D)."""
    sources = [_without_gaps(x) for x in sources]
    heads = [
        _Heads(
            source.data_ptr(),
            result.data_ptr(),
            source.shape[2],
            (ctypes.c_int64 * 3)(*source.stride()[:3]),
            (ctypes.c_int64 * 3)(*result.stride()[:3]),
        )
        for source, result in zip(sources, results, strict=True)
    ]
    cos, sin = cos.contiguous(), sin.contiguous()
    num_sequences, num_positions, _, head_size = sources[0].shape
    library.rotate(
        ctypes.byref(heads[0]),
        ctypes.byref(heads[1]),
        DTYPES[sources[0].dtype],
        cos.data_ptr(),
        sin.data_ptr(),
        cos.stride(0) if cos.shape[0] > 1 else 0,
        cos.stride(1),
        DTYPES[cos.dtype],
        num_sequences,
        num_positions,
        head_size,
        cos.shape[-1],
        inverse,
        torch.get_num_threads(),
    )
