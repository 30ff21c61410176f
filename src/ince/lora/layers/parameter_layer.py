"""`ParameterLayer`: low-rank updates of a parameter that its module multiplies with itself.

The experts of a MoE are one 3-D parameter, and no layer that could be wrapped. Here the module
that owns the parameter is wrapped, and runs with a `LowRankWeight` in its place. Several
parameters of one module nest, as in PEFT; the outermost layer does the work for all.

    experts                    ParameterLayer of down_proj
    experts.base_layer         ParameterLayer of gate_up_proj
    experts.base_layer.base_layer   the base's module

In an adapter's file only its own parameters count: the last that the module declares is
``experts.lora_A.weight``, the one before it ``experts.base_layer.lora_A.weight``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.layers.adapted import Adapted, MergedTensor, own_tensors
from ince.lora.layers.by_rows import by_rows
from ince.lora.layers.low_rank_weight import LowRankUpdate, LowRankWeight
from ince.lora.layers.parameters import (
    get_parameter,
    put_dropout,
    put_parameter,
    remove_parameters,
)
from ince.lora.layers.plain import plain_copy, plain_tensors
from ince.lora.layers.replaced import run_with
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState

__all__ = ["ParameterLayer", "parameter_factor_shapes"]

_INSIDE = "base_layer."


def parameter_factor_shapes(
    shape: tuple[int, ...], r: int, *, is_transposed: bool
) -> dict[str, tuple[int, ...]]:
    """A and B of a parameter, as PEFT lays them out.

    Args:
        shape: (O, D); or (E, O, D) of E experts, (E, D, O) where they are transposed.
        r: rank of each expert.
        is_transposed: of 3-D parameters.

    Returns:
        A (E · r, D) and B (O, r · E): in A the r rows of an expert are neighbors, in B the E
        columns of a rank are.
    """
    num_experts = shape[0] if len(shape) == 3 else 1
    num_out, num_in = shape[-2:]
    if is_transposed and len(shape) == 3:
        num_out, num_in = num_in, num_out
    return {
        "lora_A.weight": (num_experts * r, num_in),
        "lora_B.weight": (num_out, r * num_experts),
    }


class ParameterLayer(Adapted):
    """Runs a module with ``W + s · B A`` for its parameter W, for any number of adapters.

    Args:
        base_layer: the module that owns W, or another such layer around it.
        parameter_name: of W in that module, 2-D or 3-D.
        state: of the model.
    """

    def __init__(
        self, base_layer: nn.Module, parameter_name: str, state: AdapterState | None = None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.parameter_name = parameter_name
        self.state = AdapterState() if state is None else state
        self.specs: dict[str, AdapterSpec] = {}
        self.train(base_layer.training)

    # ------------------------------------------------------------------------------ adapters

    @property
    def owner(self) -> nn.Module:
        """The module whose parameter it is."""
        return self.get_base_layer()

    @property
    def parameter(self) -> Tensor:
        """W, frozen; of packed experts what stands for it."""
        return own_tensors(self.owner)[self.parameter_name].detach()

    @property
    def is_flipped(self) -> bool:
        """Whether W is stored as (E, D, O)."""
        is_transposed = bool(getattr(self.owner, "is_transposed", False))
        return is_transposed and self.parameter.ndim == 3

    def nest(self) -> Iterator["ParameterLayer"]:
        """This layer and those inside, the outer first."""
        layer: nn.Module = self
        while isinstance(layer, ParameterLayer):
            yield layer
            layer = layer.base_layer

    def add_adapter(self, adapter_name: str, spec: AdapterSpec) -> None:
        """Make A and B of an adapter, not yet set."""
        parameter = self.parameter
        shapes = parameter_factor_shapes(
            tuple(parameter.shape), spec.r, is_transposed=self.is_flipped
        )
        for suffix, shape in shapes.items():
            empty = torch.empty(shape, device=parameter.device, dtype=torch.float32)
            put_parameter(self, adapter_name, suffix, empty)
        put_dropout(self, adapter_name, spec.dropout)
        self.specs[adapter_name] = spec

    def factor_parameters(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A (E · r, D) and B (O, r · E)."""
        a = get_parameter(self, adapter_name, "lora_A.weight")
        return a, get_parameter(self, adapter_name, "lora_B.weight")

    def update(self, adapter_name: str, dtype: torch.dtype, *, dropout: float) -> LowRankUpdate:
        """An adapter's factors, by expert where there are some; differentiable."""
        spec = self.specs[adapter_name]
        a, b = (factor.to(dtype) for factor in self.factor_parameters(adapter_name))
        if self.parameter.ndim == 3:
            num_experts = self.parameter.shape[0]
            a = a.view(num_experts, spec.r, -1)
            b = b.view(-1, spec.r, num_experts).permute(2, 0, 1).contiguous()
        return LowRankUpdate(a, b, spec.scaling, dropout)

    def adapter_names(self) -> tuple[str, ...]:
        """Of this layer and of those inside."""
        return tuple(dict.fromkeys(name for layer in self.nest() for name in layer.specs))

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """A and B of all parameters of the module that the adapter adapts."""
        found: dict[str, Tensor] = {}
        mine = [layer for layer in self.nest() if adapter_name in layer.specs]
        for depth, layer in enumerate(mine):
            a, b = layer.factor_parameters(adapter_name)
            found[f"{_INSIDE * depth}lora_A.weight"] = a
            found[f"{_INSIDE * depth}lora_B.weight"] = b
        return found

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out, of this layer and of those inside."""
        for layer in list(self.nest()):
            if layer.specs.pop(adapter_name, None) is not None:
                remove_parameters(layer, adapter_name)
            inner = layer.base_layer
            while isinstance(inner, ParameterLayer) and set(inner.specs) <= {adapter_name}:
                inner = layer.base_layer = inner.base_layer

    def chain(self) -> Iterator[Adapted]:
        """This one alone: what is inside is its own."""
        yield self

    # ------------------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module takes to what it gives."""
        return self.forward_with({}, *args, **kwargs)

    def forward_with(self, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The same, with other parameters of the module replaced too."""
        routing = None if self.state.disabled else self.state.routing
        if routing is None:
            return self._run(self.active_here(), parameters, args, kwargs)

        def run(adapter_name: str | None, *args: Any, **kwargs: Any) -> Any:
            return self.run_alone(adapter_name, parameters, args, kwargs)

        where = f"{type(self.owner).__name__}.{self.parameter_name}"
        return by_rows(routing, self.adapter_names(), run, args, kwargs, where=where)

    def run_alone(
        self,
        adapter_name: str | None,
        parameters: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """`forward_with` for one adapter, or for none, whatever is active."""
        mine = adapter_name is not None and adapter_name in self.adapter_names()
        return self._run([adapter_name] if mine else [], parameters, args, kwargs)

    def _run(
        self,
        adapter_names: Sequence[str | None],
        parameters: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        replaced: dict[str, Any] = dict(parameters)
        for layer in self.nest():
            names = [name for name in adapter_names if name is not None and name in layer.specs]
            if names:
                weight = layer.adapted_weight(names)
                # A compiler wants tensors. It can add W and s·BA up where they are used.
                compiling = torch.compiler.is_compiling()
                replaced[layer.parameter_name] = weight.dense() if compiling else weight
        if not replaced:
            return self.owner(*args, **kwargs)
        return run_with(self.owner, replaced, *args, **kwargs)

    def adapted_weight(self, adapter_names: list[str]) -> LowRankWeight:
        """W with adapters of this layer."""
        weight = self.parameter
        updates = [
            self.update(
                name,
                weight.dtype,
                dropout=self.specs[name].dropout if self.training else 0.0,
            )
            for name in adapter_names
        ]
        return LowRankWeight(weight, updates, flipped=self.is_flipped)

    # ------------------------------------------------------------------------------- merging

    def weight_key(self) -> tuple[int, ...]:
        """Its own where W is what another module shares."""
        mine = any(
            layer.parameter_name == "weight" and set(layer.specs) & set(self.active_here())
            for layer in self.nest()
        )
        weight = self.owner._parameters.get("weight")
        return (id(self),) if weight is None or mine else (id(weight),)

    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """A copy of the module with merged parameters."""
        copied = plain_copy(self.owner, dtype)
        for name, layer in self._changed().items():
            merged = nn.Parameter(layer.merged_parameter(dtype), requires_grad=False)
            copied._parameters[name] = merged
        return copied

    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """The module's tensors, those that are adapted merged."""
        changed = {prefix + name: layer for name, layer in self._changed().items()}
        for tensor in plain_tensors(prefix, self.owner, dtype):
            layer = changed.get(tensor.name)
            if layer is None:
                yield tensor
            else:
                merge = layer.merged_parameter
                yield MergedTensor(
                    tensor.name, tensor.shape, dtype, lambda merge=merge: merge(dtype)
                )

    def _changed(self) -> dict[str, "ParameterLayer"]:
        active = set(self.active_here())
        return {layer.parameter_name: layer for layer in self.nest() if active & set(layer.specs)}

    @torch.no_grad()
    def merged_parameter(self, dtype: torch.dtype) -> Tensor:
        """W + s · B A of the active adapters: in float32, rounded once; a new tensor.

        Raises:
            AdapterError: it is not finite in `dtype`.
        """
        names = [name for name in self.active_here() if name in self.specs]
        weight = self.parameter
        merged = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        updates = [self.update(name, torch.float32, dropout=0.0) for name in names]
        for part in range(weight.shape[0]) if weight.ndim == 3 else (slice(None),):
            w = weight[part].float()
            for update in updates:
                a, b, s, _ = update.picked(part) if weight.ndim == 3 else update
                left, right = (a.mT, b.mT) if self.is_flipped else (b, a)
                w = torch.addmm(w, left, right, alpha=s)
            merged[part] = w
        if not bool(torch.isfinite(merged).all()):
            raise AdapterError(
                "a merged parameter is not finite",
                where=f"{type(self.owner).__name__}.{self.parameter_name}",
                got=f"dtype {dtype}, adapters {', '.join(names)}",
                do="merge to bfloat16 or float32, or train with a lower learning rate",
            )
        return merged

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        ranks = {name: spec.r for name, spec in self.specs.items()}
        return f"parameter={self.parameter_name}, adapters={ranks}"
