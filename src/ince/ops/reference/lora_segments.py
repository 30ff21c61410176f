"""Updates by many adapters in plain PyTorch: a segment at a time, in float32."""

from collections.abc import Sequence

from torch import Tensor

from ince.ops.lora_segments import ADD_LORA_SEGMENTS_, check_segments

__all__ = ["add_lora_segments_"]


@ADD_LORA_SEGMENTS_.backend("default")
def add_lora_segments_(y: Tensor, x: Tensor, blocks: Sequence[Tensor], layout: Tensor) -> None:
    """See `ince.ops.add_lora_segments_`."""
    sizes = [block.numel() for block in blocks]
    num_inputs, num_outputs = x.shape[1], y.shape[1]
    segments = check_segments(layout, sizes, y.shape[0], num_inputs, num_outputs)
    for block, start, stop, rank, a, b, turn, shift in segments:
        flat, rows = blocks[block], slice(start, stop)
        update = y[rows].float()
        if rank:
            A = flat[a : a + rank * num_inputs].view(rank, num_inputs).float()
            B = flat[b : b + rank * num_outputs].view(rank, num_outputs).float()
            update = update + x[rows].float() @ A.T @ B
        if turn >= 0:
            update = update + flat[turn : turn + num_outputs].float() * update
        if shift >= 0:
            update = update + flat[shift : shift + num_outputs].float()
        y[rows] = update.to(y.dtype)
