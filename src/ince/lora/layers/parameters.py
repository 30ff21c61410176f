"""Where an adapter's tensors lie in a layer: PEFT's module dictionaries, made when needed.

The end of a tensor's name in a file says where it lies in the live module:

    file                     module
    lora_A.weight            lora_A.<adapter>.weight
    lora_magnitude_vector    lora_magnitude_vector.<adapter>.weight
    lora_embedding_A         lora_embedding_A.<adapter>
"""

# torch names the dictionaries of a module as private, and has no other way to them.
# pyright: reportPrivateUsage=false

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = [
    "get_parameter",
    "get_start",
    "put_dropout",
    "put_parameter",
    "put_start",
    "remove_parameters",
    "tie_parameter",
]

# Groups whose tensors are the weight of a module of their own, which their file leaves out.
_HELD = frozenset({"lora_magnitude_vector"})
_START = "lora_start"


def put_parameter(
    layer: nn.Module,
    adapter_name: str,
    suffix: str,
    tensor: Tensor,
    *,
    requires_grad: bool = True,
) -> None:
    """Register a tensor of an adapter as a parameter."""
    group, leaf = _place(suffix)
    parameter = nn.Parameter(tensor, requires_grad)
    if leaf is None:
        _table(layer, group, nn.ParameterDict)[adapter_name] = parameter
    elif leaf == "weight":
        _put(_table(layer, group, nn.ModuleDict), adapter_name, _holder(parameter, layer.training))
    else:
        setattr(_table(layer, group, nn.ModuleDict)[adapter_name], leaf, parameter)


def get_parameter(layer: nn.Module, adapter_name: str, suffix: str) -> Tensor:
    """A tensor that `put_parameter` registered."""
    group, leaf = _place(suffix)
    # Straight to the dictionaries: this is on the way of every forward.
    table: Any = vars(layer)["_modules"][group]
    if leaf is None:
        return table._parameters[adapter_name]
    holder = table._modules[adapter_name]
    found = holder._parameters.get(leaf)
    return getattr(holder, leaf) if found is None else found


def tie_parameter(layer: nn.Module, adapter_name: str, suffix: str, source: nn.Parameter) -> None:
    """Let a matrix that `put_parameter` registered be the transpose of another layer's."""
    group, _ = _place(suffix)
    _table(layer, group, nn.ModuleDict)[adapter_name] = _Transposed(source)


def put_dropout(layer: nn.Module, adapter_name: str, p: float) -> None:
    """Register the module that PEFT's users look for; the products ask the spec."""
    table = _table(layer, "lora_dropout", nn.ModuleDict)
    if p > 0:
        dropout = nn.Dropout(p)
    else:
        # One is enough for all adapters of a layer that drop nothing.
        tables: dict[str, nn.Module] = vars(table)["_modules"]
        dropout = next((each for each in tables.values() if type(each) is nn.Identity), None)
        dropout = _new(nn.Identity) if dropout is None else dropout
    dropout.__dict__["training"] = layer.training
    _put(table, adapter_name, dropout)


def put_start(layer: nn.Module, adapter_name: str, a0: Tensor, b0: Tensor) -> None:
    """Keep frozen start factors, which move with the layer."""
    holder = nn.Module()
    holder.register_buffer("a0", a0.detach().float(), persistent=False)
    holder.register_buffer("b0", b0.detach().float(), persistent=False)
    _table(layer, _START, nn.ModuleDict)[adapter_name] = holder


def get_start(layer: nn.Module, adapter_name: str) -> tuple[Tensor, Tensor] | None:
    """What `put_start` kept, or None."""
    table: Any = vars(layer)["_modules"].get(_START)
    holder = None if table is None else table._modules.get(adapter_name)
    return None if holder is None else (holder._buffers["a0"], holder._buffers["b0"])


def remove_parameters(layer: nn.Module, adapter_name: str) -> None:
    """Take all tensors of an adapter out."""
    for table in layer.children():
        if isinstance(table, nn.ModuleDict | nn.ParameterDict) and adapter_name in table:
            del table[adapter_name]


class _Transposed(nn.Module):
    """Holds a parameter that is another layer's, the other way around."""

    def __init__(self, source: nn.Parameter) -> None:
        super().__init__()
        self.source = source

    @property
    def weight(self) -> Tensor:
        """A view of it; gradients flow to the source."""
        return self.source.t()


def _table(layer: nn.Module, group: str, kind: type[nn.Module]) -> Any:
    tables: dict[str, Any] = vars(layer)["_modules"]
    if group not in tables:
        layer.add_module(group, kind())
    return tables[group]


def _put(table: nn.Module, adapter_name: str, module: nn.Module) -> None:
    # Past the checks of assignment, which are a good part of the time that loading takes.
    vars(table)["_modules"][adapter_name] = module


def _place(suffix: str) -> tuple[str, str | None]:
    group, dot, leaf = suffix.partition(".")
    if dot:
        return group, leaf
    return group, "weight" if group in _HELD else None


def _holder(parameter: nn.Parameter, training: bool) -> nn.Module:
    if parameter.ndim != 2:
        holder = _new(nn.Module)
        parameters = holder.__dict__["_parameters"]
    else:
        # Not by its constructor, which draws random numbers for nothing.
        holder = _new(nn.Linear)
        num_out, num_in = parameter.shape
        holder.__dict__.update(in_features=num_in, out_features=num_out)
        parameters = holder.__dict__["_parameters"]
        parameters["bias"] = None
    parameters["weight"] = parameter
    holder.__dict__["training"] = training
    return holder


def _new(kind: type[nn.Module]) -> nn.Module:
    """A module as `nn.Module.__init__` leaves it, in a third of the time."""
    module = kind.__new__(kind)
    attributes = module.__dict__
    for name, make in _attributes():
        attributes[name] = make()
    return module


@functools.cache
def _attributes() -> tuple[tuple[str, Callable[[], object]], ...]:
    """What a new module has: empty tables, each its own, and plain values."""
    return tuple(
        (name, (lambda kept=value: kept) if value or value is None else type(value))
        for name, value in vars(nn.Module()).items()
    )
