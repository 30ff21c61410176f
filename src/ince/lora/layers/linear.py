"""Linear layers: `nn.Linear`, `Linear4bit`, and transformers' `Conv1D`, which keeps (in, out)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.lora.factors import Factors
from ince.lora.layers.geometry import BLOCK_WEIGHTS, Block, FactorNames, copy_with, stored_blocks
from ince.lora.layers.spec import AdapterSpec
from ince.quant import Linear4bit, weight_of

__all__ = ["LinearGeometry", "low_rank"]

_ALL = slice(None)
_NAMES = FactorNames("lora_A.weight", "lora_B.weight")


def low_rank(x: Tensor, factors: Factors) -> Tensor:
    """``s · B(A x) + s · bias`` over the last dimension, in the dtype of `x`."""
    b_OR = (factors.b_OR * factors.s).to(x.dtype)
    bias = None if factors.bias is None else (factors.bias * factors.s).to(x.dtype)
    return F.linear(F.linear(x, factors.a_RD.to(x.dtype)), b_OR, bias)


@dataclass(frozen=True)
class LinearGeometry:
    """``y = W x + bias`` over the last dimension, however W is kept."""

    base: Any
    is_transposed: bool = False
    """Kept as (in, out): by transformers' `Conv1D`, the linear layer of GPT-2."""
    factor_names: FactorNames = _NAMES
    channel_dim: int = -1

    @property
    def in_features(self) -> int:
        """Inputs."""
        return int(self.base.weight.shape[0] if self.is_transposed else self.base.in_features)

    @property
    def out_features(self) -> int:
        """Outputs."""
        return int(self.base.weight.shape[1] if self.is_transposed else self.base.out_features)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the products."""
        base = self.base
        return base.compute_dtype if isinstance(base, Linear4bit) else base.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        """Of the base, (out,)."""
        return self.base.bias

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in), or (in, out)."""
        shape = (self.out_features, self.in_features)
        return shape[::-1] if self.is_transposed else shape

    def refusal(self, spec: AdapterSpec) -> str | None:  # noqa: ARG002
        """A linear layer carries every adapter."""
        return None

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """A (r, in), B (out, r)."""
        return {
            self.factor_names.a: (r, self.in_features),
            self.factor_names.b: (self.out_features, r),
        }

    def matrices(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return a, b

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (out, in): a new tensor."""
        if self.is_transposed:
            return self.base.weight.detach().t().to(dtype, copy=True)
        return weight_of(self.base, dtype)

    def frozen_weight(self, dtype: torch.dtype) -> Tensor:
        """W to multiply with, (out, in), in `dtype`; not to be changed."""
        base = self.base
        if isinstance(base, Linear4bit):
            return base.frozen_weight(dtype)
        weight = base.weight.detach().to(dtype)
        return weight.t() if self.is_transposed else weight

    def blocks(self) -> Iterator[Block]:
        """Rows of what is stored: of a weight in 4 bits, those that are expanded together."""
        base = self.base
        if isinstance(base, Linear4bit):
            for rows, weight in base.row_blocks(torch.float32, BLOCK_WEIGHTS):
                yield Block(rows, _ALL, weight)
            return
        for rows, weight in stored_blocks(base.weight):
            yield Block(_ALL, rows, weight.t()) if self.is_transposed else Block(rows, _ALL, weight)

    def to_layout(self, matrix_OD: Tensor) -> Tensor:
        """(out, in) to what the layer keeps."""
        return matrix_OD.t().contiguous() if self.is_transposed else matrix_OD

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """(..., in) to (..., out)."""
        return low_rank(x, factors)

    def per_output(self, values_O: Tensor) -> Tensor:
        """As it is: outputs are last."""
        return values_O

    def rebuilt(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A copy; of a layer in 4 bits, a plain `nn.Linear`."""
        if not isinstance(self.base, Linear4bit):
            return copy_with(self.base, weight, bias)
        plain = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        return copy_with(plain, weight, bias)
