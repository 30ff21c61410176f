"""Updates by many adapters on a GPU: sixteen rows of a segment to a program, at the rank they have.

The host cuts segments into tiles and hands over their table; two kernels follow, one for each
factor, so that programs share out ranks first and outputs then. Importing this needs Triton.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ince.ops.lora_segments import BLOCK_DTYPES, check_segments
from ince.ops.triton.start import start

__all__ = ["add_lora_segments_"]

_ROWS, _RANKS, _DEPTH, _COLUMNS = 16, 16, 64, 64

# Of a row of the table of tiles.
_FIELDS = tl.constexpr(8)


@triton.jit
def shrink_kernel(
    x_ptr: tl.tensor,
    tile_ptr: tl.tensor,
    product_ptr: tl.tensor,
    num_inputs: tl.tensor,
    x_row: tl.tensor,
    product_row: tl.tensor,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """x Aᵀ of a tile of rows, for RANKS of its ranks."""
    tile_ptr += tl.program_id(0) * _FIELDS
    rank = tl.load(tile_ptr + 3)
    if tl.program_id(1) * RANKS >= rank:
        return
    first, stop = tl.load(tile_ptr + 1), tl.load(tile_ptr + 2)
    a_ptr = tl.load(tile_ptr).to(tl.pointer_type(KIND)) + tl.load(tile_ptr + 4)
    row = first + tl.arange(0, ROWS)
    r = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    sums = tl.zeros((ROWS, RANKS), tl.float32)
    for start_depth in range(0, num_inputs, DEPTH):
        d = start_depth + tl.arange(0, DEPTH)
        mask = (row < stop)[:, None] & (d < num_inputs)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + d[None, :], mask=mask, other=0.0)
        mask = (r < rank)[:, None] & (d < num_inputs)[None, :]
        a = tl.load(a_ptr + r[:, None].to(tl.int64) * num_inputs + d[None, :], mask=mask, other=0.0)
        sums += tl.dot(x.to(tl.float32), tl.trans(a.to(tl.float32)), input_precision="ieee")
    at = row[:, None] * product_row + r[None, :]
    tl.store(product_ptr + at, sums, mask=(row < stop)[:, None] & (r < rank)[None, :])


@triton.jit
def expand_kernel(
    y_ptr: tl.tensor,
    tile_ptr: tl.tensor,
    product_ptr: tl.tensor,
    num_outputs: tl.tensor,
    y_row: tl.tensor,
    product_row: tl.tensor,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Those products times B onto COLUMNS of y, and what follows."""
    tile_ptr += tl.program_id(0) * _FIELDS
    rank = tl.load(tile_ptr + 3)
    first, stop = tl.load(tile_ptr + 1), tl.load(tile_ptr + 2)
    block_ptr = tl.load(tile_ptr).to(tl.pointer_type(KIND))
    b_ptr = block_ptr + tl.load(tile_ptr + 5)
    turn, shift = tl.load(tile_ptr + 6), tl.load(tile_ptr + 7)
    row = first + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has_column = column < num_outputs
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start_rank in range(0, rank, RANKS):
        r = start_rank + tl.arange(0, RANKS)
        mask = (row < stop)[:, None] & (r < rank)[None, :]
        at = row[:, None] * product_row + r[None, :]
        left = tl.load(product_ptr + at, mask=mask, other=0.0)
        mask = (r < rank)[:, None] & has_column[None, :]
        at = r[:, None].to(tl.int64) * num_outputs + column[None, :]
        right = tl.load(b_ptr + at, mask=mask, other=0.0)
        sums += tl.dot(left, right.to(tl.float32), input_precision="ieee")
    mask = (row < stop)[:, None] & has_column[None, :]
    at = row[:, None] * y_row + column[None, :]
    y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32) + sums
    has_turn, has_shift = has_column & (turn >= 0), has_column & (shift >= 0)
    y += y * tl.load(block_ptr + turn + column, mask=has_turn, other=0.0).to(tl.float32)[None, :]
    y += tl.load(block_ptr + shift + column, mask=has_shift, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


def add_lora_segments_(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> None:
    """See `ince.ops.add_lora_segments_`."""
    (num_rows, num_outputs), num_inputs = y.shape, x.shape[1]
    flat = [block.contiguous() for block in blocks]
    sizes = [block.numel() for block in flat]
    segments = check_segments(layout, sizes, num_rows, num_inputs, num_outputs)
    most_rank = max((rank for _, start_, stop, rank, *_ in segments if stop > start_), default=0)
    inputs = x if x.stride(1) == 1 else x.contiguous()
    result = y if y.stride(1) == 1 else y.contiguous()
    products = x.new_empty((num_rows, max(most_rank, 1)), dtype=torch.float32)
    for dtype in BLOCK_DTYPES:
        tiles = [
            [flat[block].data_ptr(), row, min(row + _ROWS, stop), rank, *offsets]
            for block, begin, stop, rank, *offsets in segments
            if flat[block].dtype == dtype
            for row in range(begin, stop, _ROWS)
        ]
        if not tiles or not num_outputs:
            continue
        table = torch.tensor(tiles, dtype=torch.int64).to(y.device, non_blocking=True)
        kind = tl.float32 if dtype == torch.float32 else tl.bfloat16
        sizes_of = {"KIND": kind, "ROWS": _ROWS, "RANKS": _RANKS, "contract": True}
        with torch.cuda.device_of(y):
            if most_rank:
                start(
                    shrink_kernel,
                    (len(tiles), -(-most_rank // _RANKS)),
                    inputs,
                    table,
                    products,
                    num_inputs,
                    inputs.stride(0),
                    products.stride(0),
                    DEPTH=_DEPTH,
                    **sizes_of,
                )
            start(
                expand_kernel,
                (len(tiles), -(-num_outputs // _COLUMNS)),
                result,
                table,
                products,
                num_outputs,
                result.stride(0),
                products.stride(0),
                COLUMNS=_COLUMNS,
                **sizes_of,
            )
    if result is not y:
        y.copy_(result)
