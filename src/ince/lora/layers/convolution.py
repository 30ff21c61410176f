"""Convolutions in one to three dimensions.

The update is a convolution of the same kernel to `r` channels, and one of kernel 1 from them:
stride, padding and dilation are the base's, so that it stands beside the weight. As a matrix W
is (out, in · kernel).

With groups, A sees all inputs and B maps each group of ranks to its group of outputs (as in
PEFT). Then s · B A reaches across groups, where W has no weights: as a matrix it is (out, all
inputs · kernel), with zeros in W, and it cannot be merged into a weight with groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.errors import AdapterError
from ince.lora.factors import Factors
from ince.lora.layers.geometry import Block, FactorNames, copy_with, stored_blocks
from ince.lora.layers.spec import AdapterSpec

__all__ = ["ConvolutionGeometry"]

_NAMES = FactorNames("lora_A.weight", "lora_B.weight")
_CONVOLVE: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class ConvolutionGeometry:
    """``y = W * x + bias``, x (N, in, space…) or without N; W as a matrix is (out, in · kernel)."""

    base: Any
    factor_names: FactorNames = _NAMES

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its size in each dimension of space."""
        return tuple(self.base.kernel_size)

    @property
    def in_features(self) -> int:
        """Input channels times the kernel's size."""
        return self.base.in_channels * self.base.weight[0, 0].numel()

    @property
    def out_features(self) -> int:
        """Output channels."""
        return self.base.out_channels

    @property
    def channel_dim(self) -> int:
        """In front of space."""
        return -1 - len(self.kernel)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the products."""
        return self.base.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        """Of the base, (out,)."""
        return self.base.bias

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in / groups, kernel…)."""
        return tuple(self.base.weight.shape)

    def refusal(self, spec: AdapterSpec) -> str | None:
        """With groups, the rank is shared out among them; and there is no norm to speak of."""
        groups = self.base.groups
        if spec.r % groups:
            return f"is a convolution of {groups} groups, which do not divide the rank {spec.r}"
        if groups > 1 and spec.variant != "lora":
            return f"is a convolution of {groups} groups, which takes no use_dora"
        return None

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """A (r, in, kernel…), B (out, r / groups, 1…)."""
        base = self.base
        ones = (1,) * len(self.kernel)
        return {
            self.factor_names.a: (r, base.in_channels, *self.kernel),
            self.factor_names.b: (base.out_channels, r // base.groups, *ones),
        }

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A with its kernel in a row; B with zeros where a rank is of another group."""
        return a.flatten(1), _spread(b.flatten(1), self.base.groups)

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (out, in · kernel): a new tensor."""
        base = self.base
        weight = base.weight.detach().flatten(1).to(dtype, copy=base.groups == 1)
        return _spread(weight, base.groups)

    def blocks(self) -> Iterator[Block]:
        """Of some outputs each."""
        if self.base.groups > 1:
            yield Block(slice(None), slice(None), self.weight_matrix(torch.float32))
            return
        for outputs, weight in stored_blocks(self.base.weight.flatten(1)):
            yield Block(outputs, slice(None), weight)

    def to_layout(self, matrix_OD: Tensor) -> Tensor:
        """(out, in · kernel) to (out, in / groups, kernel…).

        Raises:
            AdapterError: with groups, the matrix has weights across them.
        """
        groups = self.base.groups
        if groups == 1:
            return matrix_OD.reshape(self.weight_shape)
        own = _gathered(matrix_OD, groups)
        if int(own.count_nonzero()) != int(matrix_OD.count_nonzero()):
            raise AdapterError(
                "an update that reaches across the groups of a convolution cannot be merged",
                got=f"{type(self.base).__name__} of {groups} groups",
                do="leave the adapter unmerged, or put the layer in exclude_modules",
            )
        return own.reshape(self.weight_shape)

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """As the base takes and gives, in the dtype of x."""
        base, s = self.base, factors.s
        convolve = _CONVOLVE[len(self.kernel) - 1]
        a = factors.a_RD.unflatten(1, (base.in_channels, *self.kernel))
        b = (factors.b_OR * s)[(..., *(None,) * len(self.kernel))]
        bias = None if factors.bias is None else (factors.bias * s).to(x.dtype)
        x, padding = self._padded(x)
        low = convolve(x, a.to(x.dtype), None, base.stride, padding, base.dilation)
        return convolve(low, b.to(x.dtype), bias)

    def per_output(self, values_O: Tensor) -> Tensor:
        """(out, 1…), for outputs with and without a batch."""
        return values_O[(..., *(None,) * len(self.kernel))]

    def rebuilt(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A copy."""
        return copy_with(self.base, weight, bias)

    def _padded(self, x: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
        """The input, and what is left to pad with zeros."""
        base = self.base
        if base.padding_mode == "zeros":
            return x, base.padding
        sides: list[int] = []
        for size, dilation, padding in zip(
            reversed(self.kernel), reversed(base.dilation), _reversed_padding(base), strict=True
        ):
            if padding is None:  # "same"
                total = dilation * (size - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [padding, padding]
        return F.pad(x, sides, mode=base.padding_mode), (0,) * len(self.kernel)


def _reversed_padding(base: Any) -> list[int | None]:
    """Of each side, the last dimension first; None where it is what keeps the size."""
    if isinstance(base.padding, str):
        return [None if base.padding == "same" else 0] * len(base.kernel_size)
    return list(reversed(base.padding))


def _spread(matrix: Tensor, groups: int) -> Tensor:
    """Rows of each group moved to the group's own columns: (M, K) to (M, K · groups)."""
    if groups == 1:
        return matrix
    return torch.block_diag(*matrix.unflatten(0, (groups, -1)))


def _gathered(matrix: Tensor, groups: int) -> Tensor:
    """What `_spread` makes, undone: each row's own columns."""
    parts = matrix.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
    return torch.cat([parts[group, :, group] for group in range(groups)])
