"""Linear layers: `nn.Linear`, `Linear4bit`, and transformers' `Conv1D`, which keeps (in, out)."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.lora.factors import Factors
from ince.quant import Linear4bit, weight_of

__all__ = ["LinearGeometry", "TransposedGeometry", "frozen_weight", "low_rank"]


def low_rank(x: Tensor, factors: Factors) -> Tensor:
    """``s · B(A x) + s · bias`` over the last dimension, in the dtype of `x`."""
    b_OR = (factors.b_OR * factors.s).to(x.dtype)
    bias = None if factors.bias is None else (factors.bias * factors.s).to(x.dtype)
    return F.linear(F.linear(x, factors.a_RD.to(x.dtype)), b_OR, bias)


def frozen_weight(base: nn.Linear | Linear4bit, dtype: torch.dtype) -> Tensor:
    """The weight to multiply with, (out, in), in `dtype`; not to be changed."""
    if isinstance(base, Linear4bit):
        return base.frozen_weight(dtype)
    return base.weight.detach().to(dtype)


@dataclass(frozen=True)
class LinearGeometry:
    """`nn.Linear` or `Linear4bit`: W is the weight."""

    base: nn.Linear | Linear4bit
    channel_dim: int = -1

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.base.out_features

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the products."""
        base = self.base
        return base.compute_dtype if isinstance(base, Linear4bit) else base.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        """Of the base, (out,)."""
        return cast("Tensor | None", self.base.bias)

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """A (r, in), B (out, r)."""
        return {
            "lora_A.weight": (r, self.in_features),
            "lora_B.weight": (self.out_features, r),
        }

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (out, in): a new tensor."""
        return weight_of(self.base, dtype)

    def to_layout(self, matrix_OD: Tensor) -> Tensor:
        """As it is."""
        return matrix_OD

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """(..., in) to (..., out)."""
        return low_rank(x, factors)

    def per_output(self, values_O: Tensor) -> Tensor:
        """As it is: outputs are last."""
        return values_O

    def rebuilt(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """A plain `nn.Linear`, in 4 bits no more."""
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear


@dataclass(frozen=True)
class TransposedGeometry:
    """transformers' `Conv1D`, the linear layer of GPT-2: its weight is (in, out)."""

    base: Any
    channel_dim: int = -1

    @property
    def in_features(self) -> int:
        """Inputs."""
        return int(self.base.weight.shape[0])

    @property
    def out_features(self) -> int:
        """Outputs."""
        return int(self.base.weight.shape[1])

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the products."""
        return self.base.weight.dtype

    @property
    def bias(self) -> Tensor | None:
        """Of the base, (out,)."""
        return self.base.bias

    def factor_shapes(self, r: int) -> dict[str, tuple[int, ...]]:
        """A (r, in), B (out, r), as for any linear layer."""
        return {
            "lora_A.weight": (r, self.in_features),
            "lora_B.weight": (self.out_features, r),
        }

    def weight_matrix(self, dtype: torch.dtype) -> Tensor:
        """W, (out, in): a new tensor."""
        weight: Tensor = self.base.weight
        return weight.detach().t().to(dtype, copy=True, memory_format=torch.contiguous_format)

    def to_layout(self, matrix_OD: Tensor) -> Tensor:
        """(out, in) to (in, out)."""
        return matrix_OD.t().contiguous()

    def update(self, x: Tensor, factors: Factors) -> Tensor:
        """(..., in) to (..., out)."""
        return low_rank(x, factors)

    def per_output(self, values_O: Tensor) -> Tensor:
        """As it is: outputs are last."""
        return values_O

    def rebuilt(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Another `Conv1D`."""
        with torch.device("meta"):
            layer = type(self.base)(self.out_features, self.in_features)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer
