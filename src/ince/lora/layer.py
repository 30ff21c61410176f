"""`LoraLinear`: a frozen linear layer with low-rank updates beside it.

The base layer is wrapped, never changed: not by a forward, not by ``train()``, not by a
merge, which returns a new weight. Adapters lie in module dictionaries under their names, as
in PEFT, so that parameter names agree. They are float32 whatever the base is, since AdamW's
small steps would be lost in 16 bits; products are made in the precision of the input.
"""

import math
from collections.abc import Iterator
from typing import Self, cast

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.product import FusedLora, lora_frozen, lora_reference
from ince.quant import Linear4bit, weight_of

__all__ = ["LoraLinear", "base_weight", "outer_modules"]


class LoraLinear(nn.Module):
    """``y = W x + s · B(A x)`` over a frozen `nn.Linear` or `Linear4bit`.

    Args:
        base_layer: W, left as it is. Shapes: W (out, in), A (r, in), B (out, r).

    Of several adapters one is active; `disable_adapters` leaves the base alone.

    Source: LoRA, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base_layer: nn.Linear | Linear4bit) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features: int = base_layer.in_features
        self.out_features: int = base_layer.out_features
        self.lora_dropout = nn.ModuleDict()
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.active_adapter: str | None = None
        self.disable_adapters: bool = False

    @classmethod
    def from_base(
        cls,
        base_layer: nn.Linear | Linear4bit,
        adapter_name: str = "default",
        *,
        r: int,
        alpha: float,
        scaling: float,
        dropout: float = 0.0,
        init: bool | str | None = True,
    ) -> Self:
        """Wrap `base_layer` with one active adapter; see `add_adapter`."""
        layer = cls(base_layer)
        layer.train(base_layer.training)
        layer.add_adapter(
            adapter_name, r=r, alpha=alpha, scaling=scaling, dropout=dropout, init=init
        )
        layer.active_adapter = adapter_name
        return layer

    def add_adapter(
        self,
        adapter_name: str,
        *,
        r: int,
        alpha: float,
        scaling: float,
        dropout: float = 0.0,
        init: bool | str | None = True,
    ) -> None:
        """Add factors on the base's device.

        Args:
            adapter_name: key in the module dictionaries.
            r: rank. alpha: kept for the record; `scaling` is what multiplies.
            dropout: of the update's input, in training.
            init: True: A uniform in ±1/√in (Kaiming, a=√5, as loralib), B zero;
                "gaussian": A of deviation 1/r, B zero; False: both uniform;
                None: left unset for weights that are read, drawing no random numbers.
        """
        device = next(_tensors(self.base_layer)).device
        down = _empty_linear(self.in_features, r, device)
        up = _empty_linear(r, self.out_features, device)
        if init is not None:
            _initialize(down.weight, up.weight, init)
        self.lora_A[adapter_name] = down
        self.lora_B[adapter_name] = up
        self.lora_dropout[adapter_name] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = scaling

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of an adapter, float32."""
        down = cast(nn.Linear, self.lora_A[adapter_name])
        up = cast(nn.Linear, self.lora_B[adapter_name])
        return down.weight, up.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        name = self.active_adapter
        if name is None or self.disable_adapters or name not in self.scaling:
            return self.base_layer(x)
        a_RD, b_OR = self.factors(name)
        s = self.scaling[name]
        dropout = self.lora_dropout[name]
        p = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        if self._is_plain_only(x):
            return lora_reference(x, a_RD, b_OR, self.base_layer, s, p)
        if torch.is_grad_enabled() and (
            x.requires_grad or a_RD.requires_grad or b_OR.requires_grad
        ):
            base = self.base_layer
            y = FusedLora.apply(x, a_RD, b_OR, base, lambda: base_weight(base, x.dtype), s, p)
            return cast(Tensor, y)
        if p > 0:
            return lora_reference(x, a_RD, b_OR, self.base_layer, s, p)
        return lora_frozen(x, a_RD, b_OR, self.base_layer, s)

    def _is_plain_only(self, x: Tensor) -> bool:
        """Whether the base trains, or computes in another dtype than that of `x`."""
        if torch.is_autocast_enabled(x.device.type):
            return True
        if any(parameter.requires_grad for parameter in self.base_layer.parameters()):
            return True
        return x.dtype != _compute_dtype(self.base_layer)

    def delta_weight(self, adapter_name: str) -> Tensor:
        """s · B A, (out, in) float32."""
        a_RD, b_OR = self.factors(adapter_name)
        return (b_OR.detach() * self.scaling[adapter_name]) @ a_RD.detach()

    @torch.no_grad()
    def merged_weight(self, dtype: torch.dtype) -> Tensor:
        """W + s · B A of the active adapter, (out, in): computed in float32, rounded once.

        A new tensor; over a 4-bit base it is not quantized again, since small updates would
        vanish in the rounding.

        Raises:
            AdapterError: the merged weight is not finite in `dtype`.
        """
        weight = weight_of(self.base_layer, torch.float32)
        name = self.active_adapter
        if name is not None and name in self.scaling:
            a_RD, b_OR = self.factors(name)
            weight.addmm_(b_OR, a_RD, alpha=self.scaling[name])
        merged = weight.to(dtype)
        if not bool(torch.isfinite(merged).all()):
            raise AdapterError(
                "a merged weight is not finite",
                got=f"dtype {dtype}, adapter {name!r}",
                do="merge to bfloat16 or float32, or train with a lower learning rate",
            )
        return merged

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"adapters={self.r}, active={self.active_adapter!r}"


def outer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of `model` by dotted name, the root first, without adapted layers' insides."""
    inside = ""
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        inside = f"{name}." if isinstance(module, LoraLinear) else ""
        yield name, module


def base_weight(base: nn.Linear | Linear4bit, dtype: torch.dtype) -> Tensor:
    """The frozen weight, (out, in), in `dtype`; dequantized when it is in 4 bits."""
    if isinstance(base, Linear4bit):
        return base.frozen_weight(dtype)
    return base.weight.detach().to(dtype)


def _empty_linear(in_features: int, out_features: int, device: torch.device) -> nn.Linear:
    # On "meta" first: nn.Linear's own initialization would draw random numbers for nothing.
    linear = nn.Linear(in_features, out_features, bias=False, device="meta")
    empty = torch.empty(out_features, in_features, device=device, dtype=torch.float32)
    linear.weight = nn.Parameter(empty)
    return linear


def _initialize(a_RD: Tensor, b_OR: Tensor, init: bool | str) -> None:
    if init == "gaussian":
        nn.init.normal_(a_RD, std=1 / a_RD.shape[0])
    else:
        nn.init.kaiming_uniform_(a_RD, a=math.sqrt(5))
    if init is False:
        nn.init.kaiming_uniform_(b_OR, a=math.sqrt(5))
    else:
        nn.init.zeros_(b_OR)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _compute_dtype(base: nn.Linear | Linear4bit) -> torch.dtype:
    return base.compute_dtype if isinstance(base, Linear4bit) else base.weight.dtype
