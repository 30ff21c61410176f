"""Products with a 4-bit weight on the CPU.

Few rows are multiplied with codes that are looked up on the way, so that decoding takes the time
of reading the packed weight; tens of rows with weights that are expanded in a core's own cache.
Both are compiled, where the instruction set has a way to. Everything else expands the weight and
leaves the product to PyTorch, slab by slab when it is large: a slab is still in a cache when it
is multiplied, and memory above the packed weight stays small.
"""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F

import ince.ops.reference as reference
from ince.ops.cpu.library import Library, active
from ince.ops.cpu.parts import Parts, parts_of
from ince.ops.cpu.tables import DTYPES
from ince.ops.linear import GEMV_4BIT, LINEAR_4BIT, LINEAR_4BIT_INPUT_GRAD

__all__ = ["gemv_4bit", "linear_4bit", "linear_4bit_input_grad"]

# Above it no compiled product is taken; that of each instruction set may end before.
_MAX_ROWS = 128

# Of an expanded weight, at most.
_SLAB_BYTES = 1 << 25


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
    parts = parts_of(packed, absmax, nested_absmax, nested_offset, blocksize, quant_type)
    if 0 < num_rows <= _MAX_ROWS:
        y = _multiplied(library, x.contiguous(), parts, bias, num_rows, num_out, num_in)
        if y is not None:
            return y
    # Slabs of rows, which begin with a block.
    height = _size_of_slab(num_in * x.element_size(), blocksize // gcd(num_in, blocksize))
    if height >= num_out:
        return F.linear(x, parts.expand(library, x.new_empty((num_out, num_in))), bias)
    y = x.new_empty((*x.shape[:-1], num_out))
    memory = x.new_empty(height * num_in)
    for start in range(0, num_out, height):
        stop = min(start + height, num_out)
        slab = memory[: (stop - start) * num_in].view(stop - start, num_in)
        parts.expand(library, slab, start=start * num_in)
        y[..., start:stop] = F.linear(x, slab, None if bias is None else bias[start:stop])
    return y


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
    num_out, num_in = shape
    parts = parts_of(packed, absmax, nested_absmax, nested_offset, blocksize, quant_type)
    # Slabs of columns: sums over the outputs are taken in one product and rounded once.
    width = _size_of_slab(num_out * grad.element_size(), blocksize)
    if width >= num_in or num_in % blocksize:
        return torch.matmul(grad, parts.expand(library, grad.new_empty((num_out, num_in))))
    result = grad.new_empty((*grad.shape[:-1], num_in))
    memory = grad.new_empty(num_out * width)
    for start in range(0, num_in, width):
        stop = min(start + width, num_in)
        slab = memory[: num_out * (stop - start)].view(num_out, stop - start)
        parts.expand(library, slab, start=start, stride=num_in)
        result[..., start:stop] = torch.matmul(grad, slab)
    return result


def _multiplied(
    library: Library,
    x: Tensor,
    parts: Parts,
    bias: Tensor | None,
    num_rows: int,
    num_out: int,
    num_in: int,
) -> Tensor | None:
    """The product by the compiled function; nothing where it has none for this case."""
    y = x.new_empty((*x.shape[:-1], num_out))
    if bias is not None:
        bias = bias.contiguous()
    is_done = library.multiply(
        x.data_ptr(),
        DTYPES[x.dtype],
        num_rows,
        num_in,
        num_out,
        *parts.addresses,
        parts.blocksize,
        parts.code,
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y if is_done else None


def _size_of_slab(line_bytes: int, step: int) -> int:
    """How many lines to expand together: a power of two, as products like, `step` or more."""
    return max(1 << (max(_SLAB_BYTES // line_bytes, 1).bit_length() - 1), step)
