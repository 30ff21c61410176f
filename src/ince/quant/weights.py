"""Weights of a module, packed or not: their floats, their number, their bytes."""

import torch
from torch import Tensor, nn

from ince.errors import QuantError
from ince.quant.experts4bit import Experts4bit
from ince.quant.linear4bit import Linear4bit

__all__ = ["num_weights", "packed_modules", "packed_weight_name", "weight_bytes", "weight_of"]


def packed_modules(model: nn.Module) -> dict[str, Linear4bit | Experts4bit]:
    """The modules over packed weights in `model`, by dotted name, in its order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit | Experts4bit)
    }


def packed_weight_name(name: str, module: nn.Module) -> str:
    """How the weight of a module of `packed_modules` is called where it is not packed."""
    if isinstance(module, Experts4bit):
        return name  # it stands where the parameter stood
    return f"{name}.weight" if name else "weight"


def weight_of(module: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight of an `nn.Linear` or `Linear4bit`: a new (out, in) tensor in `dtype`.

    It belongs to the caller, who may change it; the layer keeps its own.

    Raises:
        QuantError: `module` is another kind of module.
    """
    if isinstance(module, Linear4bit):
        return module.dequantize(dtype)
    if isinstance(module, nn.Linear):
        return module.weight.detach().to(dtype, copy=True)
    raise QuantError(
        "not a linear layer", got=type(module).__name__, expected="nn.Linear or Linear4bit"
    )


def num_weights(module: nn.Module) -> int:
    """Weights in `module` and all inside, biases included; shared ones count once.

    A 4-bit weight counts as the weights it stands for.
    """
    num_float = sum(parameter.numel() for parameter in module.parameters())
    return num_float + sum(layer.num_weights for layer in packed_modules(module).values())


def weight_bytes(module: nn.Module) -> int:
    """Bytes that the weights counted by `num_weights` take, scales included."""
    float_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    return float_bytes + sum(layer.weight_bytes for layer in packed_modules(module).values())
