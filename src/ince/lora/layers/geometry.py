"""`Geometry`: how one kind of base layer multiplies, and how its weight is read as a matrix.

LoRA is about a matrix W (O, D). Layers keep it in different shapes and apply it in different
ways; a geometry tells between them. It looks at the base layer and never changes it.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from ince.lora.factors import Factors

__all__ = ["Geometry"]


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
        """Where outputs lie in the layer's result: -1, or 1."""
        ...

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the layer multiplies."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias, (O,)."""
        ...

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """Shapes of A and B as an adapter's file keeps them, A first, by the end of the name."""
        ...

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (O, D): a new tensor, which the caller may change."""
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
