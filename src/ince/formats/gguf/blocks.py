"""Expand the quantized blocks of GGUF to floats.

Each function takes the bytes of some blocks and fills their weights in float32. The order
of the operations is the published one, every product and sum rounded by itself, so that
the result equals that of the reference implementations to the bit.

Not here: writing such blocks. ince's own 4-bit format is NF4.

Source: the block structures and dequantize_row functions of ggml,
github.com/ggml-org/ggml (ggml-common.h, ggml-quants.c).
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["EXPANDED_TYPES", "expand_blocks"]

# Blocks are expanded in pieces that stay in a processor's cache.
_PIECE_WEIGHTS = 1 << 17


def expand_blocks(blocks_NB: Tensor, type_name: str, out: Tensor) -> None:
    """Fill `out` with the weights of quantized blocks.

    Args:
        blocks_NB: (blocks, bytes of a block) uint8, contiguous.
        type_name: one of `EXPANDED_TYPES`.
        out: (blocks × weights of a block,) of any float type; float32 results are
            rounded to it once.
    """
    fill = EXPANDED_TYPES[type_name]
    num_blocks = len(blocks_NB)
    if not num_blocks:
        return
    out_NW = out.view(num_blocks, -1)
    width = out_NW.shape[1]
    piece = _PIECE_WEIGHTS // width
    scratch = torch.empty(0 if out.dtype == torch.float32 else min(piece, num_blocks) * width)
    for start in range(0, num_blocks, piece):
        part_NB = blocks_NB[start : start + piece]
        target_NW = out_NW[start : start + piece]
        if out.dtype == torch.float32:
            fill(part_NB, target_NW)
        else:
            floats_NW = scratch[: target_NW.numel()].view(target_NW.shape)
            fill(part_NB, floats_NW)
            target_NW.copy_(floats_NW)


def _halves(blocks_NB: Tensor, start: int, count: int = 1) -> list[Tensor]:
    """`count` float16 numbers from byte `start` of every block, each (blocks, 1) in float32."""
    raw = blocks_NB[:, start : start + 2 * count].contiguous().view(torch.float16)
    return list(raw.float().split(1, dim=1))


def _nibbles(bytes_NB: Tensor, out_NW: Tensor) -> Tensor:
    """The low halves of the bytes, then the high halves, as floats in `out_NW`."""
    half = bytes_NB.shape[1]
    out_NW[:, :half] = bytes_NB & 15
    out_NW[:, half:] = bytes_NB >> 4
    return out_NW


def _fifth_bits(blocks_NB: Tensor, start: int) -> Tensor:
    """32 bits from byte `start`, each as 0 or 16: (blocks, 32) uint8."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (blocks_NB[:, start : start + 4, None] >> shifts) & 1
    return (bits << 4).flatten(1)


def _q4_0(blocks_NB: Tensor, out_NW: Tensor) -> None:
    (scale,) = _halves(blocks_NB, 0)
    _nibbles(blocks_NB[:, 2:], out_NW).sub_(8).mul_(scale)


def _q4_1(blocks_NB: Tensor, out_NW: Tensor) -> None:
    scale, low = _halves(blocks_NB, 0, 2)
    _nibbles(blocks_NB[:, 4:], out_NW).mul_(scale).add_(low)


def _q5_0(blocks_NB: Tensor, out_NW: Tensor) -> None:
    (scale,) = _halves(blocks_NB, 0)
    _nibbles(blocks_NB[:, 6:], out_NW).add_(_fifth_bits(blocks_NB, 2)).sub_(16).mul_(scale)


def _q5_1(blocks_NB: Tensor, out_NW: Tensor) -> None:
    scale, low = _halves(blocks_NB, 0, 2)
    _nibbles(blocks_NB[:, 8:], out_NW).add_(_fifth_bits(blocks_NB, 4)).mul_(scale).add_(low)


def _q8_0(blocks_NB: Tensor, out_NW: Tensor) -> None:
    (scale,) = _halves(blocks_NB, 0)
    out_NW.copy_(blocks_NB[:, 2:].view(torch.int8)).mul_(scale)


def _quarters(bytes_NB: Tensor) -> Tensor:
    """Two bits of every byte, four times over each run of 32 bytes: (blocks, 4 × bytes)."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    runs = bytes_NB.reshape(len(bytes_NB), -1, 1, 32)
    return ((runs >> shifts) & 3).flatten(1)


def _single_bits(bytes_NB: Tensor) -> Tensor:
    """One bit of every byte of 32, eight times over them: (blocks, 256)."""
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    return ((bytes_NB[:, None, :] >> shifts) & 1).flatten(1)


def _q2_k(blocks_NB: Tensor, out_NW: Tensor) -> None:
    scales = blocks_NB[:, :16]
    scale, low = _halves(blocks_NB, 80, 2)
    grouped = out_NW.view(-1, 16, 16)
    grouped.copy_(_quarters(blocks_NB[:, 16:80]).view(-1, 16, 16))
    grouped.mul_(((scales & 15).float() * scale)[..., None])
    grouped.sub_(((scales >> 4).float() * low)[..., None])


def _q3_k(blocks_NB: Tensor, out_NW: Tensor) -> None:
    (scale,) = _halves(blocks_NB, 108)
    packed = blocks_NB[:, 96:108]
    low = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], dim=1)
    high = torch.cat([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)
    scales = (low | (high << 4)).float().sub_(32)
    # A bit that is set means that nothing is taken away.
    absent = (_single_bits(blocks_NB[:, :32]) ^ 1) << 2
    grouped = out_NW.view(-1, 16, 16)
    out_NW.copy_(_quarters(blocks_NB[:, 32:96])).sub_(absent)
    grouped.mul_((scales * scale)[..., None])


def _scales_and_lows(packed_N12: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits from 12 bytes: (blocks, 8) float32 each."""
    first, second, third = packed_N12[:, :4], packed_N12[:, 4:8], packed_N12[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    lows = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return scales.float(), lows.float()


def _nibble_runs(bytes_NB: Tensor, run: int) -> Tensor:
    """Low halves, then high halves, of each run of bytes: (blocks, 2 × bytes)."""
    runs = bytes_NB.reshape(len(bytes_NB), -1, 1, run)
    return torch.cat([runs & 15, runs >> 4], dim=2).flatten(1)


def _scale_eighths(blocks_NB: Tensor, out_NW: Tensor) -> None:
    """The last step of Q4_K and Q5_K: a scale and a minimum for every 32 weights."""
    scale, low = _halves(blocks_NB, 0, 2)
    scales, lows = _scales_and_lows(blocks_NB[:, 4:16])
    grouped = out_NW.view(-1, 8, 32)
    grouped.mul_((scales * scale)[..., None]).sub_((lows * low)[..., None])


def _q4_k(blocks_NB: Tensor, out_NW: Tensor) -> None:
    out_NW.copy_(_nibble_runs(blocks_NB[:, 16:], 32))
    _scale_eighths(blocks_NB, out_NW)


def _q5_k(blocks_NB: Tensor, out_NW: Tensor) -> None:
    high = _single_bits(blocks_NB[:, 16:48])
    out_NW.copy_(_nibble_runs(blocks_NB[:, 48:], 32) | (high << 4))
    _scale_eighths(blocks_NB, out_NW)


def _q6_k(blocks_NB: Tensor, out_NW: Tensor) -> None:
    (scale,) = _halves(blocks_NB, 208)
    scales = blocks_NB[:, 192:208].view(torch.int8).float()
    high = _quarters(blocks_NB[:, 128:192])
    out_NW.copy_(_nibble_runs(blocks_NB[:, :128], 64) | (high << 4)).sub_(32)
    out_NW.view(-1, 16, 16).mul_((scales * scale)[..., None])


EXPANDED_TYPES: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
