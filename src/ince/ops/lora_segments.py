"""Updates by many LoRA adapters, each for some rows: the declaration of an operator.

A server's step has rows of many requests, and each request names an adapter of its own. Rows are
sorted by adapter, so that those of one are a segment, and a segment is multiplied with its
adapter's factors as they are: at the rank that it has, without padding, stacking or gathering.
With a row for each of many adapters that takes the time of reading the factors, once.

An adapter is one flat tensor, its *block*, and a layer's part of it is known by offsets. So an
adapter comes and goes by one copy, and one table says for a layer what is where.

Shapes: N rows, D inputs, O outputs, G segments, R the rank of a segment.

Source: S-LoRA, arXiv:2311.03285; Punica, arXiv:2310.18547. Their kernels pad to the largest rank.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device
from ince.ops.operator import Operator

__all__ = [
    "ADD_LORA_SEGMENTS_",
    "BLOCK_DTYPES",
    "LAYOUT_COLUMNS",
    "add_lora_segments_",
    "add_lora_segments_shortcut",
    "check_layout",
    "check_segments",
]

BLOCK_DTYPES = (torch.float32, torch.bfloat16)

LAYOUT_COLUMNS = (
    "block",
    "start",
    "stop",
    "rank",
    "a_offset",
    "b_offset",
    "turn_offset",
    "shift_offset",
)
"""Of a layout, in their order."""

_Shortcut = Callable[[Tensor, Tensor, Sequence[Tensor], Tensor], bool]
_shortcuts: list[_Shortcut] = []


def add_lora_segments_shortcut(function: _Shortcut) -> _Shortcut:
    """Register a way past torch.library: it does the work, or nothing and returns False."""
    _shortcuts.append(function)
    return function


def add_lora_segments_(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> None:
    """``y ← y + (x Aᵀ) B`` for each segment; then ``y ← y + turn · y + shift`` where it has them.

    A row of `layout` is a segment: ``[block, start, stop, rank, a_offset, b_offset, turn_offset,
    shift_offset]``. It says which of `blocks` the adapter is, which rows of `x` and `y` are its
    own, and where in the block its parts begin, each without gaps:

    - A (rank, D).
    - B (rank, O): LoRA's B transposed, times its scale.
    - turn and shift (O,), or offset -1 where there is none: what DoRA and a bias come to.

    Args:
        y: (N, O) float32, bfloat16 or float16, written into; what the layer gives.
        x: (N, D) in the type of `y`; what the layer takes.
        blocks: flat tensors, float32 or bfloat16 each.
        layout: (G, 8) int64 on the CPU, wherever the others are. Segments follow each other and do
            not overlap; they may be empty, and rows may be in none. A rank of 0 has no product.

    Raises:
        InputError: types, shapes or devices do not fit, or a segment points outside of its block
            or of the rows.

    Arithmetic is float32, and a result is rounded once.
    """
    if not torch.compiler.is_compiling():
        for shortcut in _shortcuts:
            if shortcut(y, x, blocks, layout):
                return
    torch.ops.ince.add_lora_segments_.default(y, x, blocks, layout)


def check_layout(layout: Tensor) -> None:
    """Raise `InputError` unless `layout` is of the type and shape of one."""
    if layout.dtype != torch.int64 or layout.ndim != 2 or layout.shape[1] != len(LAYOUT_COLUMNS):
        raise InputError(
            "not a layout of segments",
            where="layout",
            got=f"{layout.dtype}, shape {tuple(layout.shape)}",
            expected=f"int64, (segments, {len(LAYOUT_COLUMNS)}): " + ", ".join(LAYOUT_COLUMNS),
        )
    if layout.device.type not in ("cpu", "meta"):
        raise InputError(
            "the layout is read by the host",
            where="layout",
            got=f"on {layout.device}",
            expected="on the CPU",
        )


def _check(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> None:
    check_float_rows("y", y)
    if y.ndim != 2 or x.ndim != 2 or x.shape[0] != y.shape[0] or x.dtype != y.dtype:
        raise InputError(
            "inputs and outputs are not of one layer",
            where="x, y",
            got=f"{x.dtype} {tuple(x.shape)}, {y.dtype} {tuple(y.shape)}",
            expected="one type, (rows, inputs) and (rows, outputs)",
        )
    for index, block in enumerate(blocks):
        if block.dtype not in BLOCK_DTYPES or block.ndim != 1:
            raise InputError(
                "not the block of an adapter",
                where=f"blocks[{index}]",
                got=f"{block.dtype}, shape {tuple(block.shape)}",
                expected="float32 or bfloat16, one axis",
            )
    check_layout(layout)
    named = {f"blocks[{index}]": block for index, block in enumerate(blocks)}
    check_same_device(y=y, x=x, **named)


def check_segments(
    layout: Tensor, block_sizes: Sequence[int], num_rows: int, num_inputs: int, num_outputs: int
) -> list[list[int]]:
    """The rows of `layout`, once all of them point into their blocks and at rows.

    Raises:
        InputError: one does not.
    """
    segments: list[list[int]] = layout.tolist()
    before = 0
    for index, (block, start, stop, rank, *offsets) in enumerate(segments):
        if not before <= start <= stop <= num_rows:
            raise InputError(
                "segments must follow each other within the rows",
                where=f"layout[{index}]",
                got=f"rows {start} to {stop}",
                expected=f"{before} <= start <= stop <= {num_rows}",
            )
        before = stop
        if not 0 <= block < len(block_sizes) or rank < 0:
            raise InputError(
                "a segment without such a block, or without a rank",
                where=f"layout[{index}]",
                got=f"block {block}, rank {rank}",
                expected=f"0 <= block < {len(block_sizes)}, rank >= 0",
            )
        lengths = (rank * num_inputs, rank * num_outputs, num_outputs, num_outputs)
        for name, offset, length in zip(LAYOUT_COLUMNS[4:], offsets, lengths, strict=True):
            is_left_out = rank == 0 if name in ("a_offset", "b_offset") else offset == -1
            if not is_left_out and not 0 <= offset <= block_sizes[block] - length:
                raise InputError(
                    "a segment's part lies outside of its block",
                    where=f"layout[{index}], {name}",
                    got=f"{length} numbers from {offset} on",
                    expected=f"within the {block_sizes[block]} of blocks[{block}]",
                )
    return segments


ADD_LORA_SEGMENTS_ = Operator(
    "add_lora_segments_",
    "(Tensor(a!) y, Tensor x, Tensor[] blocks, Tensor layout) -> ()",
    _check,
)
