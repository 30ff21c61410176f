"""Kernels write into memory without gaps; what had gaps is written from a copy afterwards."""

from collections.abc import Iterable

from torch import Tensor

__all__ = ["copy_back"]


def copy_back(written: Iterable[Tensor], whole: Iterable[Tensor]) -> None:
    """Copy into each tensor what its `contiguous` was changed to, where the two are not one."""
    for tensor, copy in zip(written, whole, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
