"""A linear layer over a frozen weight in four bits: `Linear4bit`.

The weight is expanded for a product and dropped after it; training expands it once more in the
backward pass instead of keeping it. It differs from bitsandbytes' layer of the same name in that
nothing ever changes the packed buffers: not a forward, not a mode switch, not a cast of the
model. It loads its own state dict strictly.

Shapes: (..., in) → (..., out); weight (out, in), n = out · in.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.errors import QuantError
from ince.ops import dequantize_4bit, dequantize_absmax, gemv_4bit, linear_4bit
from ince.quant.config import NF4Config
from ince.quant.packed_module import PackedModule, packed_parts

__all__ = ["Linear4bit", "expanded"]


class Linear4bit(PackedModule):
    """``y = x Wᵀ + b`` with W in four bits, frozen.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is one; it stays a float parameter, frozen.
        config: of the quantization.
        device: of the buffers. They hold no weight yet: load a state dict, or use
            `from_linear` or `from_weight`.

    Buffers, of n weights in m = ceil(n / blocksize) blocks:
        packed: (ceil(n/2), 1) uint8.
        absmax: (m,) float32; with double quantization uint8, and beside it
        nested_absmax: (ceil(m/256),) float32, and
        nested_offset: () float32.

    Products are taken in `compute_dtype`; the result has the dtype of the input.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        config: NF4Config | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if in_features < 1 or out_features < 1:
            raise QuantError(
                "a layer without weights cannot be quantized",
                got=f"{in_features} inputs, {out_features} outputs",
                expected="at least one of each",
            )
        config = config if config is not None else NF4Config()
        super().__init__(in_features * out_features, config, device)
        self.in_features = in_features
        self.out_features = out_features
        # The weight in floats, while expanded; no buffer, so that it is never saved.
        self._expanded: Tensor | None = None
        if bias:
            empty = torch.zeros(out_features, dtype=self.compute_dtype, device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: NF4Config, *, name: str = "weight") -> Self:
        """Quantize `linear`, which is left as it is; a bias is copied.

        Args:
            linear: the layer, on any device.
            config: of the quantization.
            name: of the tensor, for messages.

        Raises:
            QuantError: the weight is empty, not finite, or of another type.
        """
        layer = cls.from_weight(linear.weight, linear.bias, config=config, name=name)
        return layer.train(linear.training)

    @classmethod
    @torch.no_grad()
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, *, config: NF4Config, name: str = "weight"
    ) -> Self:
        """Quantize `weight`, (out, in) of a float dtype; see `from_linear`."""
        if weight.ndim != 2:
            raise QuantError(
                "not the weight of a linear layer",
                where=name,
                got=f"shape {tuple(weight.shape)}",
                expected="(out, in)",
            )
        parts = packed_parts(weight, config, name)
        out_features, in_features = weight.shape
        layer = cls(in_features, out_features, config=config, device="meta")
        for part, tensor in parts.items():
            setattr(layer, part, tensor)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.out_features, self.in_features)

    @property
    def weight(self) -> "WeightFacts":
        """What code that moves or looks at layers may ask of a weight; for floats, `dequantize`."""
        return WeightFacts(torch.Size(self.weight_shape), self.compute_dtype, self.packed.device)

    @property
    def num_weights(self) -> int:
        """Weights that the layer stands for; a bias is not counted."""
        return self.out_features * self.in_features

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight, (out, in): a new tensor in `dtype`, by default `compute_dtype`."""
        return dequantize_4bit(
            self.packed,
            self.absmax,
            self.config.blocksize,
            self.weight_shape,
            self.compute_dtype if dtype is None else dtype,
            self.config.quant_type,
            nested_absmax=self.nested_absmax,
            nested_offset=self.nested_offset,
        )

    def row_blocks(self, dtype: torch.dtype, max_weights: int) -> Iterator[tuple[slice, Tensor]]:
        """The weight in `dtype` some rows at a time, each with where it lies; equal to the bit.

        Args:
            dtype: of the result.
            max_weights: of a part; more where fewer rows do not end with a block of the scales.
        """
        absmax, size = self.absmax, self.config.blocksize
        if self.nested_absmax is not None and self.nested_offset is not None:
            absmax = dequantize_absmax(absmax, self.nested_absmax, self.nested_offset)
        # Parts begin where a row and a block begin; a block is of even size, as bytes are.
        step = size // math.gcd(size, self.in_features)
        num_rows = max(1, max_weights // self.in_features // step) * step
        for start in range(0, self.out_features, num_rows):
            stop = min(start + num_rows, self.out_features)
            first, last = start * self.in_features, stop * self.in_features
            packed = self.packed[first // 2 : -(-last // 2)]
            scales = absmax[first // size : -(-last // size)]
            shape = (stop - start, self.in_features)
            rows = dequantize_4bit(packed, scales, size, shape, dtype, self.config.quant_type)
            yield slice(start, stop), rows

    def frozen_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight to multiply with, not to be changed: the held copy while there is one."""
        if self._expanded is not None and dtype in (None, self._expanded.dtype):
            return self._expanded
        return self.dequantize(dtype)

    @property
    def is_expanded(self) -> bool:
        """Whether the weight is held in `compute_dtype` as well."""
        return self._expanded is not None

    def expand(self) -> None:
        """Hold the weight in `compute_dtype` until `collapse`; see `expanded`."""
        if self._expanded is None:
            self._expanded = self.dequantize()

    def collapse(self) -> None:
        """Drop what `expand` made; the packed weight was there all along."""
        self._expanded = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), in the dtype of `x`."""
        x_in = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        if self._expanded is not None:
            y = F.linear(x_in, self._expanded, bias)
        else:
            product = gemv_4bit if x_in.numel() == self.in_features else linear_4bit
            y = product(
                x_in,
                self.packed,
                self.absmax,
                self.config.blocksize,
                self.weight_shape,
                self.config.quant_type,
                nested_absmax=self.nested_absmax,
                nested_offset=self.nested_offset,
                bias=bias,
            )
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        config = self.config
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, quant_type={config.quant_type}, "
            f"blocksize={config.blocksize}, double_quant={config.double_quant}, "
            f"compute_dtype={config.compute_dtype}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._expanded is not None:
            self._expanded = self._expanded.to(self.packed.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self._expanded is not None:
            self._expanded = self.dequantize()


@dataclass(frozen=True)
class WeightFacts:
    """What is known of a weight without expanding it. No tensor: nothing can be computed."""

    shape: torch.Size
    dtype: torch.dtype
    """Of products."""
    device: torch.device
    requires_grad: bool = False
    quant_state: str = "packed"
    """accelerate takes every class of this name for bitsandbytes', and asks for this one to see
    whether the weight is still to be packed."""


@contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """Inside, every `Linear4bit` of `model` keeps its weight in `compute_dtype`.

    Generation then expands each weight once instead of at every token, for the memory of the
    16-bit model. Results are equal up to the order of sums. On leaving, also by an exception, the
    memory is given back; layers that an outer `expanded` holds stay with it.
    """
    held: list[Linear4bit] = []
    try:
        for module in model.modules():
            if isinstance(module, Linear4bit) and not module.is_expanded:
                module.expand()
                held.append(module)
        yield
    finally:
        for module in held:
            module.collapse()
