"""`ExpertWeight`: one matrix of a packed stack, multiplied without being kept in floats.

The experts of a mixture pick the matrix of an expert, ``self.down_proj[i]``, and multiply with
it. Out of a packed stack they get this in its place. It stands in for a tensor by torch's
``__torch_function__``: products with it are those of a 4-bit layer, whose backward pass expands
the matrix again instead of keeping it; anything else gets the matrix in floats.

Shapes: W (M, N), as stored. Where it is turned, what it stands for is Wᵀ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ince.ops import dequantize_4bit, linear_4bit

__all__ = ["ExpertWeight", "PackedSlice"]


@dataclass(frozen=True)
class PackedSlice:
    """The blocks of a packed stack in which a matrix lies, and where in them."""

    packed: Tensor
    absmax: Tensor
    """float32, one for each block."""
    blocksize: int
    quant_type: str
    num_blocks_weights: int
    """Weights in these blocks."""
    start: int
    """The first that is the matrix's."""
    shape: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether the matrix is all that the blocks hold."""
        return self.num_blocks_weights == self.shape[0] * self.shape[1]

    def to(self, device: torch.device) -> "PackedSlice":
        """On `device`, where the packed bytes are copied to if need be."""
        if self.packed.device == device:
            return self
        return replace(self, packed=self.packed.to(device), absmax=self.absmax.to(device))

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The matrix in floats, new."""
        shape = self.shape if self.is_whole else (self.num_blocks_weights,)
        floats = dequantize_4bit(
            self.packed, self.absmax, self.blocksize, shape, dtype, self.quant_type
        )
        if self.is_whole:
            return floats
        stop = self.start + self.shape[0] * self.shape[1]
        return floats[self.start : stop].view(self.shape)


class ExpertWeight:
    """Stands in for one matrix of a stack; see the module.

    Args:
        where: it lies.
        compute_dtype: of products, whose results have the dtype of the other factor.
        turned: whether it stands for the transpose of what is stored.
    """

    def __init__(
        self, where: PackedSlice, compute_dtype: torch.dtype, *, turned: bool = False
    ) -> None:
        self.where = where
        self.dtype = compute_dtype
        self.turned = turned

    # -------------------------------------------------------------------------- as a tensor

    ndim = 2
    device = property(lambda self: self.where.packed.device)

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        return torch.Size(self.where.shape[::-1] if self.turned else self.where.shape)

    def size(self, dim: int | None = None) -> Any:
        """As `Tensor.size`."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As `Tensor.dim`."""
        return 2

    def detach(self) -> "ExpertWeight":
        """Itself: no gradient goes to it."""
        return self

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix in `dtype`, by default that of products: a new tensor."""
        matrix = self.where.dequantize(self.dtype if dtype is None else dtype)
        return matrix.mT if self.turned else matrix

    def float(self) -> Tensor:
        """In float32, not by way of the dtype of products."""
        return self.dequantize(torch.float32)

    @property
    def mT(self) -> "ExpertWeight":  # noqa: N802  a tensor's name
        """The transpose."""
        return ExpertWeight(self.where, self.dtype, turned=not self.turned)

    T = property(lambda self: self.mT)

    def t(self) -> "ExpertWeight":
        """As `Tensor.t`."""
        return self.mT

    def transpose(self, dim0: int, dim1: int) -> "ExpertWeight":
        """As `Tensor.transpose`."""
        return self.mT if {dim0 % 2, dim1 % 2} == {0, 1} else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dequantize(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.dequantize()[index]

    def __len__(self) -> int:
        return self.shape[0]

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(cast(Tensor, self), other)

    # ----------------------------------------------------------------------------- products

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A product with it on the right, or `func` of the matrix in floats."""
        kwargs = kwargs or {}
        if not all(issubclass(each, ExpertWeight | Tensor) for each in types):
            return NotImplemented  # what holds one of these inside goes first
        name = getattr(func, "__name__", "")
        if name == "linear":
            x, weight, bias = _linear_arguments(*args, **kwargs)
            if isinstance(weight, ExpertWeight) and isinstance(x, Tensor):
                return weight.mT.times_on_right(x, bias)
        elif name in _MATMUL and len(args) == 2 and not kwargs:
            x, weight = args
            if isinstance(weight, ExpertWeight) and isinstance(x, Tensor) and x.ndim > 0:
                return weight.times_on_right(x)
        plain = [_as_tensor(value) for value in args]
        return func(*plain, **{key: _as_tensor(value) for key, value in kwargs.items()})

    def times_on_right(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` times what this stands for, in the dtype of `x` and where `x` is."""
        x_in = x.to(self.dtype)
        bias = None if bias is None else bias.to(self.dtype)
        where = self.where.to(x.device)
        if not where.is_whole:
            here = ExpertWeight(where, self.dtype, turned=self.turned)
            y = cast(Tensor, _Product.apply(x_in, here))
        elif self.turned:
            y = linear_4bit(
                x_in,
                where.packed,
                where.absmax,
                where.blocksize,
                where.shape,
                where.quant_type,
                bias=bias,
            )
            return y.to(x.dtype)
        else:
            y = torch.ops.ince.linear_4bit_input_grad.default(
                x_in,
                where.packed,
                where.absmax,
                None,
                None,
                where.blocksize,
                where.shape,
                where.quant_type,
            )
        return (y if bias is None else y + bias).to(x.dtype)


class _Product(torch.autograd.Function):
    """x times a matrix that begins within a block; expanded again in the backward pass."""

    @staticmethod
    def forward(x: Tensor, weight: ExpertWeight) -> Tensor:
        return x @ weight.dequantize(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, weight = inputs
        ctx.save_for_backward(weight.where.packed, weight.where.absmax)
        ctx.weight = weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        packed, absmax = ctx.saved_tensors
        where = replace(ctx.weight.where, packed=packed, absmax=absmax)
        weight = ExpertWeight(where, ctx.weight.dtype, turned=ctx.weight.turned)
        return grads[0] @ weight.dequantize(grads[0].dtype).mT, None


_MATMUL = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm"})


def _linear_arguments(x: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Any]:
    return x, weight, bias


def _as_tensor(value: Any) -> Any:
    if isinstance(value, ExpertWeight):
        return value.dequantize()
    if isinstance(value, tuple | list):
        return type(value)(_as_tensor(item) for item in cast("Sequence[Any]", value))
    return value
