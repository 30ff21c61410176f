"""Embeddings: the update is looked up as the rows are, ``(W + s · B A)ᵀ`` at an id.

As a matrix W is (dim, rows), the transpose of what is kept: A has a column for each id, which
is looked up; B multiplies. Some models' embeddings scale what they look up (`embed_scale`);
the update is scaled alike, since it stands beside the weight.

An id is no number to drop, so there is no dropout; and no place for a bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.lora.factors import Factors
from ince.lora.layers.geometry import Block, FactorNames, copy_with, stored_blocks
from ince.lora.layers.spec import AdapterSpec

__all__ = ["EmbeddingGeometry", "scale_of"]

_NAMES = FactorNames("lora_embedding_A", "lora_embedding_B")


def scale_of(base: nn.Module) -> Tensor | float | None:
    """What a scaled embedding multiplies its rows by, or None."""
    return cast("Tensor | float | None", getattr(base, "embed_scale", None))


@dataclass(frozen=True)
class EmbeddingGeometry:
    """``y = embed_scale · Wᵀ[ids]``; W as a matrix is (dim, rows)."""

    base: Any
    factor_names: FactorNames = _NAMES
    channel_dim: int = -1
    bias: Tensor | None = None

    @property
    def in_features(self) -> int:
        """Rows, one for each id."""
        return self.base.num_embeddings

    @property
    def out_features(self) -> int:
        """Width of a row."""
        return self.base.embedding_dim

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of what is looked up."""
        return self.base.weight.dtype

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(rows, dim)."""
        return (self.in_features, self.out_features)

    def refusal(self, spec: AdapterSpec) -> str | None:
        """There is no bias in an embedding."""
        return "is an embedding, which takes no lora_bias" if spec.bias else None

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """A (r, rows), B (dim, r)."""
        return {
            self.factor_names.a: (r, self.in_features),
            self.factor_names.b: (self.out_features, r),
        }

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return a, b

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (dim, rows): a new tensor, with the strides of what is kept."""
        return self.base.weight.detach().t().to(dtype, copy=True)

    def blocks(self) -> Iterator[Block]:
        """Of some ids each."""
        for ids, weight in stored_blocks(self.base.weight):
            yield Block(slice(None), ids, weight.t())

    def to_layout(self, matrix_OD: Tensor) -> Tensor:
        """(dim, rows) to (rows, dim)."""
        return matrix_OD.t().contiguous()

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """Ids (...) of any integer type to (..., dim).

        The gradient of A is that of an embedding: none at `padding_idx`, and by frequency
        where the base has it so.
        """
        base, dtype = self.base, self.compute_dtype
        low = F.embedding(
            x,
            factors.a_RD.t(),
            padding_idx=base.padding_idx,
            scale_grad_by_freq=base.scale_grad_by_freq,
        )
        y = F.linear(low.to(dtype), (factors.b_OR * factors.s).to(dtype))
        scale = scale_of(base)
        if scale is None:
            return y
        return y * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)

    def per_output(self, values_O: Tensor) -> Tensor:
        """As it is: outputs are last."""
        return values_O

    def rebuilt(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A copy, which scales as the base does."""
        return copy_with(self.base, weight, bias)
