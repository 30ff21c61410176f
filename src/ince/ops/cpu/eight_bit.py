"""Optimizer state in 8 bits on the CPU, equal to the reference to the bit."""

import ctypes

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import active
from ince.ops.cpu.tables import DTYPES, byte_map_address
from ince.ops.eight_bit import DEQUANTIZE_8BIT, QUANTIZE_8BIT, num_blocks

__all__ = ["dequantize_8bit", "quantize_8bit"]


class _Args(ctypes.Structure):
    """`ince::EightBitArgs` of kernels/training.h."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("absmax", ctypes.c_void_p),
        ("map", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


@QUANTIZE_8BIT.backend("cpu")
def quantize_8bit(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """See `ince.ops.quantize_8bit`."""
    library = active()
    if library is None:
        return reference.quantize_8bit(values, signed)
    flat = values.contiguous()
    codes = torch.empty(values.shape, dtype=torch.uint8)
    absmax = torch.empty((num_blocks(flat.numel()),), dtype=torch.float32)
    args = _args(flat, codes, absmax, signed)
    if not library.quantize_8bit(ctypes.addressof(args), torch.get_num_threads()):
        reference.refuse_not_finite(values)
    return codes, absmax


@DEQUANTIZE_8BIT.backend("cpu")
def dequantize_8bit(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """See `ince.ops.dequantize_8bit`."""
    library = active()
    if library is None:
        return reference.dequantize_8bit(codes, absmax, signed)
    codes, absmax = codes.contiguous(), absmax.contiguous()
    values = torch.empty(codes.shape, dtype=torch.float32)
    args = _args(values, codes, absmax, signed)
    library.dequantize_8bit(ctypes.addressof(args), torch.get_num_threads())
    return values


def _args(values: Tensor, codes: Tensor, absmax: Tensor, signed: bool) -> _Args:
    return _Args(
        values.data_ptr(),
        codes.data_ptr(),
        absmax.data_ptr(),
        byte_map_address(signed),
        codes.numel(),
        DTYPES[values.dtype],
    )
