"""Optimizer steps and 8-bit state on a GPU: tensors in, kernels launched, tensors written.

Nothing here looks for a GPU: the kernels run where their tensors are, and through Triton's
interpreter on the CPU. Importing this needs Triton; `optimizer` does so at the first call.
"""

from typing import Any

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.adamw import adamw_factors
from ince.ops.codes import STATE_BLOCKSIZE
from ince.ops.eight_bit import num_blocks
from ince.ops.gaps import copy_back
from ince.ops.triton.start import start
from ince.ops.triton.steps import (
    adamw_8bit_kernel,
    adamw_kernel,
    code_8bit_kernel,
    expand_8bit_kernel,
    lion_8bit_kernel,
    lion_kernel,
)
from ince.ops.triton.tables import byte_map_on

__all__ = [
    "adamw_8bit_step_",
    "adamw_step_",
    "dequantize_8bit",
    "lion_8bit_step_",
    "lion_step_",
    "quantize_8bit",
]

# Blocks, and numbers with float32 moments, that a program takes.
_ROWS, _TILE = 4, 1024


def quantize_8bit(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_8bit`."""
    flat = values.contiguous()
    count = flat.numel()
    codes = flat.new_empty(values.shape, dtype=torch.uint8)
    absmax = flat.new_empty((num_blocks(count),), dtype=torch.float32)
    _, thresholds, ranks = byte_map_on(signed, flat.device)
    _by_blocks(code_8bit_kernel, flat, codes, absmax, thresholds, ranks, count)
    if not bool(absmax.isfinite().all()):
        reference.refuse_not_finite(values)
    return codes, absmax


def dequantize_8bit(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """See `ince.ops.dequantize_8bit`."""
    codes, absmax = codes.contiguous(), absmax.contiguous()
    out = codes.new_empty(codes.shape, dtype=torch.float32)
    values, _, _ = byte_map_on(signed, codes.device)
    _by_blocks(expand_8bit_kernel, codes, absmax, values, out, codes.numel())
    return out


def adamw_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.adamw_step_`. The square root is the nearest number."""
    written = (parameter, exp_avg, exp_avg_sq)
    whole = [tensor.contiguous() for tensor in written]
    factors = adamw_factors(step, lr, beta1, beta2, eps, weight_decay)
    count = parameter.numel()
    _by_numbers(adamw_kernel, whole[0], gradient.contiguous(), *whole[1:], count, *factors)
    copy_back(written, whole)


def adamw_8bit_step_(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    state2: Tensor,
    absmax1: Tensor,
    absmax2: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.adamw_8bit_step_`."""
    written = (parameter, state1, state2, absmax1, absmax2)
    whole = [tensor.contiguous() for tensor in written]
    factors = adamw_factors(step, lr, beta1, beta2, eps, weight_decay)
    maps = (each for signed in (True, False) for each in byte_map_on(signed, parameter.device))
    count = parameter.numel()
    first, *rest = whole
    _by_blocks(adamw_8bit_kernel, first, gradient.contiguous(), *rest, *maps, count, *factors)
    copy_back(written, whole)


def lion_step_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.lion_step_`."""
    written = (parameter, exp_avg)
    whole = [tensor.contiguous() for tensor in written]
    factors = (1 - lr * weight_decay, 1 - beta1, 1 - beta2, -lr)
    count = parameter.numel()
    _by_numbers(lion_kernel, whole[0], gradient.contiguous(), whole[1], count, *factors)
    copy_back(written, whole)


def lion_8bit_step_(
    parameter: Tensor,
    gradient: Tensor,
    state1: Tensor,
    absmax1: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """See `ince.ops.lion_8bit_step_`."""
    written = (parameter, state1, absmax1)
    whole = [tensor.contiguous() for tensor in written]
    factors = (1 - lr * weight_decay, 1 - beta1, 1 - beta2, -lr)
    maps = byte_map_on(True, parameter.device)
    count = parameter.numel()
    first, *rest = whole
    _by_blocks(lion_8bit_kernel, first, gradient.contiguous(), *rest, *maps, count, *factors)
    copy_back(written, whole)


def _by_blocks(kernel: Any, *args: Any) -> None:
    """Launch for all blocks of the first argument, a tensor."""
    programs = -(-args[0].numel() // (_ROWS * STATE_BLOCKSIZE))
    if programs:
        with torch.cuda.device_of(args[0]):
            start(kernel, (programs,), *args, ROWS=_ROWS)


def _by_numbers(kernel: Any, *args: Any) -> None:
    programs = -(-args[0].numel() // _TILE)
    if programs:
        with torch.cuda.device_of(args[0]):
            start(kernel, (programs,), *args, TILE=_TILE)
