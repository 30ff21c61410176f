"""`Geometry`: how one kind of base layer multiplies, and how its weight is read as a matrix.

LoRA is about a matrix W (O, D). Layers keep it in different shapes and apply it in different
ways; a geometry tells between them. It looks at the base layer and never changes it.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ince.lora.factors import Factors
from ince.lora.layers.spec import AdapterSpec

__all__ = ["BLOCK_WEIGHTS", "Block", "FactorNames", "Geometry", "copy_with", "stored_blocks"]

BLOCK_WEIGHTS = 1 << 22
"""Weights of one `Block`: 16 MiB in float32."""


class FactorNames(NamedTuple):
    """The ends of the names of A and B in an adapter's file."""

    a: str
    b: str


class Block(NamedTuple):
    """A part of W in float32, not to be changed: it may be the base's own memory."""

    outputs: slice
    inputs: slice
    weight_OD: Tensor


class Geometry(Protocol):
    """One base layer, seen as a matrix W: (O, D)."""

    @property
    def base(self) -> nn.Module:
        """The layer itself."""
        ...

    @property
    def in_features(self) -> int:
        """D, the fan-in of an output."""
        ...

    @property
    def out_features(self) -> int:
        """O."""
        ...

    @property
    def channel_dim(self) -> int:
        """Where outputs lie in the layer's result, counted from its end: -1 is last."""
        ...

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the layer multiplies."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias, (O,)."""
        ...

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """In which a plain layer of this kind keeps its weight."""
        ...

    @property
    def factor_names(self) -> FactorNames:
        """Where A and B are found."""
        ...

    def refusal(self, spec: AdapterSpec) -> str | None:
        """Why this layer cannot carry such an adapter, or None."""
        ...

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """Shapes of A and B as an adapter's file keeps them, A first, by the end of the name."""
        ...

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A and B as they are kept, read as matrices: (r, D) and (O, r)."""
        ...

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (O, D): a new tensor, which the caller may change, of any strides."""
        ...

    def blocks(self) -> Iterator[Block]:
        """W part by part, without a second copy of the whole."""
        ...

    def to_layout(self, matrix_OD: Tensor) -> Tensor:
        """A matrix in the shape in which the layer keeps its weight."""
        ...

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """``s · B(A x) + s · bias``, without the base; any input that the layer takes."""
        ...

    def per_output(self, values_O: Tensor) -> Tensor:
        """One value for each output, shaped to multiply the layer's result."""
        ...

    def rebuilt(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A new plain layer of this kind; `weight` in its layout, nothing shared with the base."""
        ...


def copy_with(base: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A deep copy of a plain layer with another weight and bias, both frozen.

    What else the layer has, such as a stride or a scale, is copied whatever it is.
    """
    frozen = nn.Parameter(weight, requires_grad=False)
    # What the copy meets under these ids it takes as copied already.
    layer = copy.deepcopy(base, {id(base.weight): frozen})
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def stored_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a stored matrix and where they lie, in float32, a `Block` at a time."""
    num_rows = max(1, BLOCK_WEIGHTS // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], num_rows):
        rows = weight.detach()[start : start + num_rows]
        yield slice(start, start + rows.shape[0]), rows.float()
