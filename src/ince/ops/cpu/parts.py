"""The packed parts of a tensor as the compiled functions take them: addresses, kept valid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ince.ops.cpu.library import Library
from ince.ops.cpu.tables import DTYPES, code_address, map_address

__all__ = ["Parts", "parts_of"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a packed tensor lie, for as long as this object is there."""

    tensors: tuple[Tensor | None, ...]
    addresses: tuple[int | None, ...]
    """Of codes, scales, their own scales, the offset, and the map of 8-bit scales."""
    blocksize: int
    code: int

    def expand(
        self, library: Library, out: Tensor, *, start: int = 0, stride: int | None = None
    ) -> Tensor:
        """Fill `out` with the whole tensor, or with a part of a matrix, in floats.

        Args:
            library: to call.
            out: contiguous, of any shape; with `stride`, a run for each entry of its first axis.
            start: the first weight, at the beginning of a block.
            stride: weights from the beginning of a run to that of the next; a multiple of the
                block size, as the length of a run is then. Without it `out` is one run.
        """
        num_runs = 1 if stride is None else out.shape[0]
        library.dequantize(
            *self.addresses,
            start,
            num_runs,
            out.numel() // num_runs,
            stride or 0,
            self.blocksize,
            self.code,
            out.data_ptr(),
            DTYPES[out.dtype],
            torch.get_num_threads(),
        )
        return out


def parts_of(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    quant_type: str,
) -> Parts:
    """The arguments of an operator, of which the declaration has checked that they fit."""
    packed, absmax = packed.contiguous(), absmax.contiguous()
    nested = offset = None
    if nested_absmax is not None and nested_offset is not None:
        nested_absmax = nested_absmax.contiguous()
        nested, offset = nested_absmax.data_ptr(), nested_offset.data_ptr()
    return Parts(
        (packed, absmax, nested_absmax, nested_offset),
        (packed.data_ptr(), absmax.data_ptr(), nested, offset, map_address()),
        blocksize,
        code_address(quant_type),
    )
