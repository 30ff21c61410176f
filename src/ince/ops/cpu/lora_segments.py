"""Updates by many adapters on the CPU: one call for all segments of a layer.

A server's step has some hundred layers, and each calls this once with the same adapters. What
torch.library does with a list of tensors would take longer than the work of a small layer, so
plain tensors go a shorter way. Nothing is left unchecked by it: the compiled function looks at the
layout in every call, and what was found out of the adapters' tensors holds for these tensors, in
these places, alone.
"""

import ctypes
import struct
from collections.abc import Sequence
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import ince.ops.reference as reference
from ince.ops.cpu.library import NO_MEMORY, active
from ince.ops.cpu.tables import DTYPES
from ince.ops.lora_segments import (
    ADD_LORA_SEGMENTS_,
    BLOCK_DTYPES,
    LAYOUT_COLUMNS,
    add_lora_segments_shortcut,
)

__all__ = ["add_lora_segments_"]

# `ince::SegmentArgs` and `ince::AdapterBlock` of kernels/serving.h.
_ARGUMENTS = struct.Struct("@12q").pack
_ADAPTER_BLOCK = struct.Struct("@3q").pack


class _Adapters:
    """Tensors of adapters as the library takes them. It keeps none of them alive."""

    __slots__ = ("address", "addresses", "ids", "memory", "refs")

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self.ids = list(map(id, blocks))
        self.addresses = list(map(Tensor.data_ptr, blocks))
        # When one goes, another may be what its number stands for.
        self.refs = [ref(block, _forget) for block in blocks]
        packed = [_ADAPTER_BLOCK(b.data_ptr(), b.numel(), DTYPES[b.dtype]) for b in blocks]
        self.memory = ctypes.create_string_buffer(b"".join(packed))
        self.address = ctypes.addressof(self.memory)


class _Cell:
    """The adapters of the last call; those of the next layer are the same."""

    __slots__ = ("adapters",)

    def __init__(self) -> None:
        self.adapters: _Adapters | None = None


_CELL = _Cell()


# The cell is an argument as names of a module are gone before its last tensors at exit.
def _forget(_: ReferenceType[Tensor], cell: _Cell = _CELL) -> None:
    cell.adapters = None


def _adapters_of(blocks: Sequence[Tensor]) -> _Adapters | None:
    """What the library is to know of `blocks`; None where it cannot take them."""
    known = _CELL.adapters
    if (
        known is not None
        and list(map(id, blocks)) == known.ids
        and list(map(Tensor.data_ptr, blocks)) == known.addresses
    ):
        return known
    for block in blocks:
        is_flat = block.ndim == 1 and block.is_contiguous()
        if not (is_flat and block.is_cpu and block.dtype in BLOCK_DTYPES) or block.is_neg():
            return None
    known = _Adapters(blocks)
    _CELL.adapters = known
    return known


def _call(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> bool:
    """Whether the library did the work; if not, nothing was written."""
    library = active()
    if library is None or not layout.is_contiguous():
        return False
    (num_rows, num_outputs), num_inputs = y.shape, x.shape[1]
    y_stride, y_step = y.stride()
    x_stride, x_step = x.stride()
    if y_step != 1 or x_step != 1 or y_stride < num_outputs:
        return False
    adapters = _adapters_of(blocks)
    if adapters is None:
        return False
    status = library.add_segments(
        _ARGUMENTS(
            y.data_ptr(),
            x.data_ptr(),
            y_stride,
            x_stride,
            DTYPES[y.dtype],
            num_rows,
            num_inputs,
            num_outputs,
            layout.data_ptr(),
            layout.shape[0],
            adapters.address,
            len(blocks),
        ),
        torch.get_num_threads(),
    )
    if status == NO_MEMORY:
        raise MemoryError("there is no memory for the products of adapters")
    return status == 0


@ADD_LORA_SEGMENTS_.backend("cpu")
def add_lora_segments_(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> None:
    """See `ince.ops.add_lora_segments_`."""
    if not _call(y, x, blocks, layout):
        # It says what is wrong with a layout, and takes tensors with gaps.
        reference.add_lora_segments_(y, x, blocks, layout)


@add_lora_segments_shortcut
def _without_dispatch(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> bool:
    """Whether it is done; everything unusual is left to the operator."""
    if not (type(y) is type(x) is type(layout) is Tensor and y.is_cpu and x.is_cpu):
        return False
    if y.dtype not in DTYPES or x.dtype != y.dtype or not y.ndim == x.ndim == layout.ndim == 2:
        return False
    if x.shape[0] != y.shape[0] or y.is_neg() or x.is_neg():
        return False
    if layout.dtype != torch.int64 or layout.shape[1] != len(LAYOUT_COLUMNS) or not layout.is_cpu:
        return False
    if (y.requires_grad and torch.is_grad_enabled()) or not _call(y, x, blocks, layout):
        return False
    if not y.is_inference():
        increment_version(y)
    return True
