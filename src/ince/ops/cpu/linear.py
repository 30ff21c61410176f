"""Products with a 4-bit weight on the CPU: expand it, multiply, drop it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.ops import reference
from ince.ops.cpu.four_bit import expand
from ince.ops.cpu.library import active
from ince.ops.cpu.tables import DTYPES, code_address, map_address
from ince.ops.linear import GEMV_4BIT, LINEAR_4BIT, LINEAR_4BIT_INPUT_GRAD

__all__ = ["gemv_4bit", "linear_4bit", "linear_4bit_input_grad"]


@LINEAR_4BIT.backend("cpu")
@GEMV_4BIT.backend("cpu")
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
    library = active()
    if library is None:
        return reference.linear_4bit(
            x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, shape, quant_type
        )
    num_out, num_in = shape
    num_rows = x.numel() // num_in
    if num_rows and num_rows <= 128:
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], num_out))
        packed, absmax = packed.contiguous(), absmax.contiguous()
        nested, offset = None, None
        if nested_absmax is not None and nested_offset is not None:
            nested_absmax, nested_offset = nested_absmax.contiguous(), nested_offset.contiguous()
            nested, offset = nested_absmax.data_ptr(), nested_offset.data_ptr()
        if bias is not None:
            bias = bias.contiguous()
        if library.multiply(x.data_ptr(), DTYPES[x.dtype], num_rows, num_in, num_out, packed.data_ptr(), absmax.data_ptr(), nested, offset, map_address(), blocksize, code_address(quant_type), None if bias is None else bias.data_ptr(), y.data_ptr(), torch.get_num_threads()):
            return y
    weight = expand(
        library, packed, absmax, nested_absmax, nested_offset, blocksize, shape, x.dtype, quant_type
    )
    return F.linear(x, weight, bias)


gemv_4bit = linear_4bit


@LINEAR_4BIT_INPUT_GRAD.backend("cpu")
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
    """The gradient of `linear_4bit` by its input: (..., out) → (..., in), ``grad W``."""
    library = active()
    if library is None:
        return reference.linear_4bit_input_grad(
            grad, packed, absmax, nested_absmax, nested_offset, blocksize, shape, quant_type
        )
    weight = expand(
        library,
        packed,
        absmax,
        nested_absmax,
        nested_offset,
        blocksize,
        shape,
        grad.dtype,
        quant_type,
    )
    return torch.matmul(grad, weight)
