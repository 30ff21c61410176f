"""Tensors as the kernels of training take them: rows of numbers side by side, at equal distances.

A slice of a wider product, such as the gate's half of one that holds gate and up, is such a
tensor, and is not copied.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ince.ops.cpu.tables import DTYPES

__all__ = ["Rows", "rows_of"]


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor (num_rows, num_cols) for as long as this object is there."""

    tensor: Tensor
    num_rows: int
    num_cols: int
    stride: int
    """Numbers from the beginning of a row to that of the next."""

    @property
    def address(self) -> int:
        """Of the first number."""
        return self.tensor.data_ptr()

    @property
    def dtype(self) -> int:
        """As in kernels/kernels.h."""
        return DTYPES[self.tensor.dtype]


def rows_of(tensor: Tensor) -> Rows:
    """The last axis of `tensor` as rows; copied where they do not lie at equal distances."""
    num_cols = tensor.shape[-1]
    num_rows = math.prod(tensor.shape[:-1])
    stride = num_cols if tensor.is_contiguous() else _row_stride(tensor)
    if stride is None:
        return Rows(tensor.contiguous(), num_rows, num_cols, num_cols)
    return Rows(tensor, num_rows, num_cols, stride)


def _row_stride(tensor: Tensor) -> int | None:
    """The distance between rows; nothing where rows are not alike, have gaps, or overlap."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        return None
    sizes_and_strides = [
        (size, stride)
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        if size != 1
    ]
    if not sizes_and_strides:
        return tensor.shape[-1]
    for (_, outer), (size, inner) in pairwise(sizes_and_strides):
        if outer != size * inner:
            return None
    stride = sizes_and_strides[-1][1]
    return stride if stride >= tensor.shape[-1] else None
