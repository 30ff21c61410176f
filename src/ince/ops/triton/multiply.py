"""Products with a 4-bit weight on a GPU: which way for how many rows.

- One row, as in decoding: `gemv_kernel`, whose time is that of reading the packed weight.
- Few rows: a kernel that expands a tile of the weight in registers for each tile of the result.
- Many rows: the weight is expanded once in memory and torch multiplies. Expanding takes as long
  however many rows there are; at thousands it no longer counts, and no kernel here multiplies
  large matrices as well as torch's.

float32 has only the first and the last way: the tensor cores that the second lives on round
float32 to fewer bits. So do weights whose rows are no multiple of 32 weights long.

Importing this needs Triton; the kernels run where their tensors are (see `launch`).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.ops.triton.launch import dequantize_4bit, words_of
from ince.ops.triton.products import gemv_kernel, input_grad_kernel, linear_kernel
from ince.ops.triton.start import start
from ince.ops.triton.tables import code_on, map_on
from ince.ops.triton.tuning import Settings, fastest

__all__ = ["MAX_FUSED_ROWS", "gemv_4bit", "linear_4bit", "linear_4bit_input_grad"]

MAX_FUSED_ROWS = 256
"""Rows up to which weights are expanded in registers; an estimate, see the decision page."""

# A row of the weight is read in groups of at least so many weights that share a scale.
_LEAST_GROUP = 32

# What is tried for one row: outputs and columns of a step, warps.
_GEMV = tuple(
    Settings(1, block_n, block_k, num_warps, 2)
    for block_n, block_k, num_warps in (
        (8, 1024, 4), (16, 1024, 4), (4, 1024, 2), (8, 2048, 8), (16, 2048, 8), (8, 512, 2),
    )
)  # fmt: skip

# And for few: columns of the result and of the sum in a tile, warps, stages of the pipeline.
_FUSED = ((64, 128, 4, 3), (32, 128, 4, 3), (64, 64, 4, 4), (128, 64, 8, 3), (128, 128, 8, 2))


def linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> Tensor:
    """See `ince.ops.linear_4bit`."""
    N, K = shape
    num_rows = x.numel() // K
    grouped = _is_grouped(K, blocksize)
    if grouped and num_rows == 1:
        return gemv_4bit(
            x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, shape, quant_type
        )
    if not (grouped and _is_fused(x, num_rows)):
        weight = dequantize_4bit(
            packed, absmax, nested_absmax, nested_offset, blocksize, shape, x.dtype, quant_type
        )
        return F.linear(x, weight, bias)
    y = x.new_empty((*x.shape[:-1], N))
    x = x.contiguous()
    parts = _parts(packed, absmax, nested_absmax, nested_offset, quant_type)
    bias = None if bias is None else bias.contiguous()

    def run(settings: Settings) -> None:
        start(
            linear_kernel,
            (-(-N // settings.block_n), -(-num_rows // settings.block_m)),
            x,
            *parts,
            bias,
            y,
            num_rows,
            N,
            K,
            NESTED=nested_absmax is not None,
            HAS_BIAS=bias is not None,
            BLOCKSIZE=blocksize,
            GROUP=math.gcd(K, blocksize, settings.block_k),
            BLOCK_M=settings.block_m,
            BLOCK_N=settings.block_n,
            BLOCK_K=settings.block_k,
            num_warps=settings.num_warps,
            num_stages=settings.num_stages,
        )

    rows = _rows_of_a_tile(num_rows)
    candidates = [Settings(rows, n, k, warps, stages) for n, k, warps, stages in _FUSED]
    key = ("linear", N, K, blocksize, nested_absmax is None, x.dtype, _power_of_two(num_rows))
    _launch(key, candidates, run, x.device)
    return y


def gemv_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> Tensor:
    """See `ince.ops.gemv_4bit`."""
    N, K = shape
    if not _is_grouped(K, blocksize):
        weight = dequantize_4bit(
            packed, absmax, nested_absmax, nested_offset, blocksize, shape, x.dtype, quant_type
        )
        return F.linear(x, weight, bias)
    y = x.new_empty((*x.shape[:-1], N))
    row = x.contiguous().view(-1) if x.dtype == torch.float32 else words_of(x)
    parts = _parts(packed, absmax, nested_absmax, nested_offset, quant_type)
    bias = None if bias is None else bias.contiguous()

    def run(settings: Settings) -> None:
        start(
            gemv_kernel,
            (-(-N // settings.block_n),),
            row,
            *parts,
            bias,
            y,
            N,
            K,
            NESTED=nested_absmax is not None,
            HAS_BIAS=bias is not None,
            BLOCKSIZE=blocksize,
            GROUP=math.gcd(K, blocksize, settings.block_k),
            BLOCK_N=settings.block_n,
            BLOCK_K=settings.block_k,
            num_warps=settings.num_warps,
            num_stages=settings.num_stages,
            # Nothing of this result is compared to the bit.
            contract=True,
        )

    key = ("gemv", N, K, blocksize, nested_absmax is None, x.dtype)
    _launch(key, _GEMV, run, x.device)
    return y


def linear_4bit_input_grad(
    grad: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> Tensor:
    """See `ince.ops.reference.linear_4bit_input_grad`."""
    N, K = shape
    num_rows = grad.numel() // N
    if not (_is_grouped(K, blocksize) and _is_fused(grad, num_rows)):
        weight = dequantize_4bit(
            packed, absmax, nested_absmax, nested_offset, blocksize, shape, grad.dtype, quant_type
        )
        return grad @ weight
    out = grad.new_empty((*grad.shape[:-1], K))
    grad = grad.contiguous()
    parts = _parts(packed, absmax, nested_absmax, nested_offset, quant_type)

    def run(settings: Settings) -> None:
        start(
            input_grad_kernel,
            (-(-K // settings.block_k), -(-num_rows // settings.block_m)),
            grad,
            *parts,
            out,
            num_rows,
            N,
            K,
            NESTED=nested_absmax is not None,
            BLOCKSIZE=blocksize,
            GROUP=math.gcd(K, blocksize, settings.block_k),
            BLOCK_M=settings.block_m,
            BLOCK_N=settings.block_n,
            BLOCK_K=settings.block_k,
            num_warps=settings.num_warps,
            num_stages=settings.num_stages,
        )

    rows = _rows_of_a_tile(num_rows)
    candidates = [Settings(rows, n, k, warps, stages) for k, n, warps, stages in _FUSED]
    key = ("grad", N, K, blocksize, nested_absmax is None, grad.dtype, _power_of_two(num_rows))
    _launch(key, candidates, run, grad.device)
    return out


def _is_grouped(in_features: int, blocksize: int) -> bool:
    return math.gcd(in_features, blocksize) >= _LEAST_GROUP


def _is_fused(x: Tensor, num_rows: int) -> bool:
    return x.dtype != torch.float32 and 0 < num_rows <= MAX_FUSED_ROWS


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _rows_of_a_tile(num_rows: int) -> int:
    return min(max(_power_of_two(num_rows), 16), 128)


def _parts(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    quant_type: str,
) -> tuple[Tensor | None, ...]:
    return (
        words_of(packed),
        absmax.contiguous(),
        None if nested_absmax is None else nested_absmax.contiguous(),
        nested_offset,
        map_on(packed.device),
        code_on(quant_type, packed.device),
    )


def _launch(
    key: tuple[object, ...],
    candidates: Sequence[Settings],
    run: Callable[[Settings], None],
    device: torch.device,
) -> None:
    # Without a GPU the index is -1, and the guard does nothing.
    with torch.cuda.device(device.index if device.type == "cuda" else -1):
        run(fastest(key, candidates, run, device))
