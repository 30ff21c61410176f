"""`OwnBias`: a module with a bias of its own for each adapter (PEFT's ``bias="all"``, "lora_only").

PEFT trains the biases of the base in place, so that they stay when the adapter is switched off
or another one comes. Here the base keeps its biases. In a file they bear the names that the
base's have in PEFT: ``<module>.bias``, or ``<module>.base_layer.bias`` where the module has
low-rank factors too.

Active together, adapters add up what they change about the bias, as low-rank updates do.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ince.lora.layers.adapted import MergedTensor, own_parameters
from ince.lora.layers.by_rows import by_rows
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.parameter_layer import ParameterLayer
from ince.lora.layers.plain import plain_copy, plain_tensors
from ince.lora.layers.replaced import run_with
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import Wrapper
from ince.quant import Linear4bit

__all__ = ["OwnBias"]


class OwnBias(Wrapper):
    """A module whose parameter ``bias`` is another one for each adapter."""

    level = 1

    def __init__(self, inner: nn.Module, state: AdapterState | None = None) -> None:
        super().__init__(inner, state)
        self.own_bias = nn.ParameterDict()

    # ------------------------------------------------------------------------------ adapters

    def add_adapter(self, adapter_name: str) -> None:
        """Copy the base's bias for an adapter, in float32."""
        bias = self._base_bias().float().clone()
        self.own_bias[adapter_name] = nn.Parameter(bias)

    def own_names(self) -> tuple[str, ...]:
        """The adapters with a bias."""
        return tuple(self.own_bias)

    def own_tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """The bias, under the name that the base's has in PEFT."""
        if adapter_name not in self.own_bias:
            return {}
        has_factors = self.inner is not None and adapter_name in self.inner.adapter_names()
        return {"base_layer.bias" if has_factors else "bias": self.own_bias[adapter_name]}

    def delete_own(self, adapter_name: str) -> None:
        """Drop an adapter's bias."""
        if adapter_name in self.own_bias:
            del self.own_bias[adapter_name]

    def _base_bias(self) -> Tensor:
        return cast(Tensor, self.get_base_layer().bias).detach()

    def _change(self, adapter_names: Sequence[str]) -> Tensor:
        base = self._base_bias().float()
        changes = [self.own_bias[name] - base for name in adapter_names]
        return torch.stack(changes).sum(0) if len(changes) > 1 else changes[0]

    def _bias(self, adapter_names: Sequence[str]) -> Tensor:
        base = self._base_bias()
        if len(adapter_names) == 1:
            return self.own_bias[adapter_names[0]].to(base.dtype)
        return (base.float() + self._change(adapter_names)).to(base.dtype)

    # ------------------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output with the active adapters' bias."""
        routing = None if self.state.disabled else self.state.routing
        if routing is None:
            return self._run(self.own_active(), args, kwargs)
        own = self.own_names()
        if not set(routing.adapters) & set(own):
            return self.base_layer(*args, **kwargs)
        where = type(self.get_base_layer()).__name__
        inner = self.inner
        if isinstance(inner, LoraLayer):
            y = inner(*args, **kwargs)

            def shifted(adapter_name: str | None, y: Tensor) -> Tensor:
                names = [] if adapter_name is None else [adapter_name]
                return self._shifted(inner, y, names)

            return by_rows(routing, own, shifted, (y,), {}, where=where)

        def run(adapter_name: str | None, *args: Any, **kwargs: Any) -> Any:
            bias = {} if adapter_name is None else {"bias": self._bias([adapter_name])}
            if isinstance(inner, ParameterLayer):
                return inner.run_alone(adapter_name, bias, args, kwargs)
            return run_with(self.get_base_layer(), bias, *args, **kwargs)

        names = own if inner is None else (*own, *inner.adapter_names())
        return by_rows(routing, names, run, args, kwargs, where=where)

    def _run(self, adapter_names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not adapter_names:
            return self.base_layer(*args, **kwargs)
        inner = self.inner
        if isinstance(inner, LoraLayer):
            return self._shifted(inner, inner(*args, **kwargs), adapter_names)
        base = self.get_base_layer()
        if isinstance(base, Linear4bit):
            y = base(*args, **kwargs)
            return y + self._change(adapter_names).to(y.dtype)
        bias = {"bias": self._bias(adapter_names)}
        if isinstance(inner, ParameterLayer):
            return inner.forward_with(bias, *args, **kwargs)
        return run_with(base, bias, *args, **kwargs)

    def _shifted(self, layer: LoraLayer, y: Tensor, adapter_names: Sequence[str]) -> Tensor:
        if not adapter_names:
            return y
        return y + layer.geometry.per_output(self._change(adapter_names)).to(y.dtype)

    # ------------------------------------------------------------------------------- merging

    def weight_key(self) -> tuple[int, ...]:
        """The weight is not touched."""
        base = self.get_base_layer()
        weight = own_parameters(base).get("weight")
        if self.inner is not None:
            return self.inner.weight_key()
        return (id(self),) if weight is None else (id(weight),)

    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """The merged module with the merged bias."""
        merged = plain_copy(self.base_layer, dtype)
        if self.own_active():
            bias = self._merged_bias(cast(Tensor, merged.bias), dtype)
            merged._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        return merged

    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """The merged module's tensors, the bias merged too."""
        for tensor in plain_tensors(prefix, self.base_layer, dtype):
            if tensor.name == f"{prefix}bias" and self.own_active():
                compute = tensor.compute
                yield MergedTensor(
                    tensor.name,
                    tensor.shape,
                    tensor.dtype,
                    lambda compute=compute: self._merged_bias(compute(), dtype),
                )
            else:
                yield tensor

    @torch.no_grad()
    def _merged_bias(self, bias: Tensor, dtype: torch.dtype) -> Tensor:
        active = self.own_active()
        if self.inner is None:
            return (self._base_bias().float() + self._change(active)).to(dtype)
        return (bias.float() + self._change(active)).to(dtype)
