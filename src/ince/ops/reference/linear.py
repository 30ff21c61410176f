"""Products with a 4-bit weight in plain PyTorch: expand it, multiply, drop it."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ince.ops.linear import GEMV_4BIT, LINEAR_4BIT, LINEAR_4BIT_INPUT_GRAD
from ince.ops.reference.four_bit import dequantize_4bit

__all__ = ["gemv_4bit", "linear_4bit", "linear_4bit_input_grad"]


@LINEAR_4BIT.backend("default")
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
    weight = dequantize_4bit(
        packed, absmax, nested_absmax, nested_offset, blocksize, shape, x.dtype, quant_type
    )
    return F.linear(x, weight, bias)


@GEMV_4BIT.backend("default")
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
    return linear_4bit(
        x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, shape, quant_type
    )


@LINEAR_4BIT_INPUT_GRAD.backend("default")
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
    weight = dequantize_4bit(
        packed, absmax, nested_absmax, nested_offset, blocksize, shape, grad.dtype, quant_type
    )
    return grad @ weight
