"""Optimizer steps on the CPU: what a step reads and writes passes through once.

They equal the reference to the bit. So float32 moments and parameters are those of
`torch.optim.AdamW`, where PyTorch fuses products and sums: on every processor with FMA. For the
same reason AdamW in 32 bits takes its square roots from PyTorch: it goes over the tensor in
pieces that stay in the caches.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.adamw import ADAMW_8BIT_STEP_, ADAMW_STEP_, adamw_factors
from ince.ops.cpu.library import Library, active
from ince.ops.cpu.tables import DTYPES, byte_map_address
from ince.ops.gaps import copy_back
from ince.ops.lion import LION_8BIT_STEP_, LION_STEP_

__all__ = ["adamw_8bit_step_", "adamw_step_", "lion_8bit_step_", "lion_step_"]

# StepRule of kernels/training.h.
_ADAMW, _MOMENTS, _PARAMETER, _LION = range(4)

# Numbers of a piece: five arrays of them stay in a cache that processors share, and calls are few.
_PIECE = 1 << 18


class _Args(ctypes.Structure):
    """`ince::StepArgs` of kernels/training.h."""

    _fields_ = (
        ("parameter", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("states", ctypes.c_void_p * 2),
        ("absmax", ctypes.c_void_p * 2),
        ("maps", ctypes.c_void_p * 2),
        ("count", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("gradient_dtype", ctypes.c_int32),
        ("rule", ctypes.c_int32),
        ("decay", ctypes.c_float),
        ("share", ctypes.c_float),
        ("beta", ctypes.c_float),
        ("rest", ctypes.c_float),
        ("root", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("size", ctypes.c_float),
    )


@ADAMW_STEP_.backend("cpu")
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
    """See `ince.ops.adamw_step_`."""
    numbers = (step, lr, beta1, beta2, eps, weight_decay)
    library = active()
    if library is None:
        reference.adamw_step_(parameter, gradient, exp_avg, exp_avg_sq, *numbers)
        return
    written = (parameter, exp_avg, exp_avg_sq)
    whole = [tensor.contiguous() for tensor in written]
    flat = [tensor.view(-1) for tensor in (whole[0], gradient.contiguous(), *whole[1:])]
    factors = adamw_factors(*numbers)
    for start in range(0, parameter.numel(), _PIECE):
        p, g, first, second = (tensor[start : start + _PIECE] for tensor in flat)
        _step(library, _MOMENTS, factors, p, g, (first, second))
        _step(library, _PARAMETER, factors, p, g, (first, second.sqrt()))
    copy_back(written, whole)


@ADAMW_8BIT_STEP_.backend("cpu")
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
    numbers = (step, lr, beta1, beta2, eps, weight_decay)
    library = active()
    if library is None:
        reference.adamw_8bit_step_(parameter, gradient, state1, state2, absmax1, absmax2, *numbers)
        return
    states, absmax = (state1, state2), (absmax1, absmax2)
    _step(library, _ADAMW, adamw_factors(*numbers), parameter, gradient, states, absmax)


@LION_STEP_.backend("cpu")
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
    numbers = (lr, beta1, beta2, weight_decay)
    library = active()
    if library is None:
        reference.lion_step_(parameter, gradient, exp_avg, *numbers)
        return
    _step(library, _LION, _lion(*numbers), parameter, gradient, (exp_avg,))


@LION_8BIT_STEP_.backend("cpu")
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
    numbers = (lr, beta1, beta2, weight_decay)
    library = active()
    if library is None:
        reference.lion_8bit_step_(parameter, gradient, state1, absmax1, *numbers)
        return
    _step(library, _LION, _lion(*numbers), parameter, gradient, (state1,), (absmax1,))


def _lion(lr: float, beta1: float, beta2: float, weight_decay: float) -> tuple[float, ...]:
    return 1 - lr * weight_decay, 1 - beta1, 0.0, 1 - beta2, 1.0, 0.0, -lr


def _step(
    library: Library,
    rule: int,
    factors: tuple[float, ...],
    parameter: Tensor,
    gradient: Tensor,
    states: Sequence[Tensor],
    absmax: Sequence[Tensor] = (),
) -> None:
    """Let the library step, and copy back what had gaps."""
    written = [parameter, *states, *absmax]
    whole = [tensor.contiguous() for tensor in written]
    gradient = gradient.contiguous()
    addresses = [tensor.data_ptr() for tensor in whole]
    pair = ctypes.c_void_p * 2
    after = 1 + len(states)
    maps = (byte_map_address(True), byte_map_address(False)) if absmax else ()
    args = _Args(
        addresses[0],
        gradient.data_ptr(),
        pair(*addresses[1:after]),
        pair(*addresses[after:]),
        pair(*maps),
        parameter.numel(),
        DTYPES[parameter.dtype],
        DTYPES[gradient.dtype],
        rule,
        *factors,
    )
    library.step(ctypes.addressof(args), torch.get_num_threads())
    copy_back(written, whole)
