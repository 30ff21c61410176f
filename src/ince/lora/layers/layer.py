"""`LoraLayer`: a frozen layer with low-rank updates beside it.

The base layer is wrapped, never changed: not by a forward, not by ``train()``, not by a merge.
Adapters lie in module dictionaries under their names, as in PEFT, so that parameter names
agree. They are float32 whatever the base is, since AdamW's small steps would be lost in 16
bits; products are made in the precision of the input.

What an adapter's tensors are is its variant's to say (`ince.lora.variants`); how the base
multiplies is its geometry's (`ince.lora.layers.kinds`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.errors import AdapterError
from ince.lora.factors import Factors
from ince.lora.layers.adapted import Adapted, MergedTensor
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.linear import LinearGeometry, frozen_weight
from ince.lora.layers.parameters import (
    get_parameter,
    get_start,
    put_dropout,
    put_parameter,
    put_start,
    remove_parameters,
)
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.product import FusedLora, lora_frozen
from ince.lora.variants import VARIANTS

__all__ = ["LoraLayer"]


class LoraLayer(Adapted):
    """``y = W x + s · B(A x)`` over a frozen layer, for any number of adapters.

    Args:
        base_layer: W, left as it is. Shapes of a linear one: W (out, in), A (r, in), B (out, r).
        state: of the model; a layer on its own has one of its own.

    Raises:
        AdapterError: a kind of layer that LoRA does not adapt.

    Source: LoRA, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base_layer: nn.Module, state: AdapterState | None = None) -> None:
        super().__init__()
        geometry = geometry_of(base_layer)
        if geometry is None:
            raise AdapterError("LoRA does not adapt this layer", got=type(base_layer).__name__)
        self.base_layer = base_layer
        self.state = AdapterState() if state is None else state
        self.specs: dict[str, AdapterSpec] = {}
        self.merged_adapters: list[str] = []
        self._geometry = geometry
        self._kept: dict[tuple[str, str], tuple[object, Any]] = {}
        # In a list, so that it is no submodule: what is merged is neither saved nor counted.
        self._merged: list[nn.Module] = []
        self.train(base_layer.training)

    # ------------------------------------------------------------------------------ adapters

    def add_adapter(self, adapter_name: str, spec: AdapterSpec) -> None:
        """Make an adapter's tensors, on the base's device, not yet set; and its dropout."""
        device = next(_tensors(self.base_layer)).device
        for suffix, shape in VARIANTS[spec.variant].shapes(self.geometry, spec).items():
            empty = torch.empty(shape, device=device, dtype=torch.float32)
            put_parameter(self, adapter_name, suffix, empty)
        put_dropout(self, adapter_name, spec.dropout)
        self.specs[adapter_name] = spec

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out."""
        if self.specs.pop(adapter_name, None) is not None:
            remove_parameters(self, adapter_name)
            self._kept = {key: value for key, value in self._kept.items() if key[0] != adapter_name}
            if adapter_name in self.merged_adapters:
                self.unmerge()

    def adapter_names(self) -> tuple[str, ...]:
        """The adapters in this layer."""
        return tuple(self.specs)

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """By the end of the name in a file, such as ``lora_A.weight``."""
        spec = self.specs.get(adapter_name)
        if spec is None:
            return {}
        suffixes = VARIANTS[spec.variant].shapes(self.geometry, spec)
        return {suffix: self.parameter(adapter_name, suffix) for suffix in suffixes}

    def parameter(self, adapter_name: str, suffix: str) -> Tensor:
        """One tensor of an adapter."""
        return get_parameter(self, adapter_name, suffix)

    def factor_parameters(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A and B as they are kept: an embedding's and a convolution's have their own shapes."""
        a, b, *_ = self.geometry.factor_shapes(1)
        return self.parameter(adapter_name, a), self.parameter(adapter_name, b)

    def factors(self, adapter_name: str) -> Factors:
        """What an adapter adds here, as matrices; differentiable."""
        return VARIANTS[self.specs[adapter_name].variant].factors(self, adapter_name)

    def set_start(self, adapter_name: str, a0: Tensor, b0: Tensor) -> None:
        """Take ``s · B₀ A₀`` off the base for as long as the adapter is on.

        Starts such as PiSSA begin with A and B that are not zero, and with a base from which
        they are taken. The base here is shared and stays as it is, so this is kept beside it.

        Args:
            adapter_name: of this layer.
            a0: of the shape of A. b0: of the shape of B. Kept as frozen buffers.
        """
        put_start(self, adapter_name, a0, b0)

    def start_of(self, adapter_name: str) -> tuple[Tensor, Tensor] | None:
        """What `set_start` was given, or None."""
        return get_start(self, adapter_name)

    def kept(self, adapter_name: str, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gave for the adapter's tensors as they are now, computed once."""
        if torch.compiler.is_compiling():
            return compute()
        tensors = self.tensors(adapter_name).values()
        if any(tensor.is_inference() or tensor.is_meta for tensor in tensors):
            return compute()  # they do not count their changes
        stamp = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        found = self._kept.get((adapter_name, key))
        if found is None or found[0] != stamp:
            found = (stamp, compute())
            self._kept[adapter_name, key] = found
        return cast(Tensor, found[1])

    # ------------------------------------------------------------------------------- forward

    @property
    def geometry(self) -> Geometry:
        """How the base multiplies; renewed when `base_layer` was replaced."""
        if self._geometry.base is not self.base_layer:
            geometry = geometry_of(self.base_layer)
            assert geometry is not None  # a quantized or moved layer is of the same kind
            self._geometry = geometry
        return self._geometry

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the base takes to what it gives, in the dtype that it gives."""
        state = self.state
        if state.disabled:
            return self.base_layer(x, *args, **kwargs)
        if state.routing is not None:
            from ince.lora.mixed.layer import mixed_forward

            return mixed_forward(self, x, state.routing)
        if self._merged:
            return self._merged[0](x, *args, **kwargs)
        names = [name for name in state.active if name in self.specs]
        if not names:
            return self.base_layer(x, *args, **kwargs)
        if len(names) == 1:
            return self._one(x, names[0])
        return self._sum(x, names)

    def dropout_of(self, adapter_name: str) -> float:
        """The dropout that applies now: 0 outside training."""
        return self.specs[adapter_name].dropout if self.training else 0.0

    def _one(self, x: Tensor, adapter_name: str) -> Tensor:
        factors = self.factors(adapter_name)
        p = self.dropout_of(adapter_name)
        geometry = self.geometry
        if (
            not isinstance(geometry, LinearGeometry)
            or not self._is_frozen_in(x.dtype, x.device.type)
            or (factors.magnitude is not None and p > 0)
        ):
            return self._sum(x, [adapter_name])
        base, a_RD, b_OR, s = geometry.base, factors.a_RD, factors.b_OR, factors.s
        if torch.is_grad_enabled() and (
            x.requires_grad or a_RD.requires_grad or b_OR.requires_grad
        ):
            weight: Callable[[], Tensor] = lambda: frozen_weight(base, x.dtype)  # noqa: E731
            y = cast(Tensor, FusedLora.apply(x, a_RD, b_OR, base, weight, s, p))
        elif p > 0:
            return self._sum(x, [adapter_name])
        else:
            y = lora_frozen(x, a_RD, b_OR, base, s)
        if factors.is_plain:
            return y
        return finished(y, factors, geometry.bias)

    def _sum(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        """The definition, for every kind of layer: the base, and what each adapter changes."""
        geometry = self.geometry
        y = base = self.base_layer(x)
        for name in adapter_names:
            factors, p = self.factors(name), self.dropout_of(name)
            seen = F.dropout(x, p) if p > 0 and x.is_floating_point() else x
            update = geometry.update(seen, factors)
            if factors.magnitude is None:
                y = y + update
                continue
            c = geometry.per_output(factors.magnitude).to(y.dtype)
            plain = base if seen is x else self.base_layer(seen)
            if geometry.bias is not None:
                plain = plain - geometry.per_output(geometry.bias).to(y.dtype)
            y = y + (c - 1) * plain + c * update
        return y

    def _is_frozen_in(self, dtype: torch.dtype, device_type: str) -> bool:
        """Whether the base computes in this dtype and does not train."""
        return (
            dtype == self.geometry.compute_dtype
            and not torch.is_autocast_enabled(device_type)
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
        )

    # ------------------------------------------------------------------------------- merging

    @torch.no_grad()
    def merged_weight(
        self, dtype: torch.dtype, adapter_names: Sequence[str] | None = None
    ) -> Tensor:
        """W with adapters in it, in the base's own layout: in float32, rounded once to `dtype`.

        A new tensor; over a 4-bit base it is not quantized again, since small updates would
        vanish in the rounding.

        Args:
            dtype: of the result.
            adapter_names: those of this layer to merge; by default the active ones.

        Raises:
            AdapterError: the merged weight is not finite in `dtype`.
        """
        names = self.active_here() if adapter_names is None else adapter_names
        weight_OD = self.geometry.weight_matrix(torch.float32)
        if len(names) == 1:
            self.factors(names[0]).fold_into(weight_OD)
        elif names:
            base_OD = weight_OD.clone()
            for name in names:
                weight_OD += self.factors(name).fold_into(base_OD.clone()).sub_(base_OD)
        merged = self.geometry.to_layout(weight_OD.to(dtype))
        if not bool(torch.isfinite(merged).all()):
            raise AdapterError(
                "a merged weight is not finite",
                got=f"dtype {dtype}, adapters {', '.join(names)}",
                do="merge to bfloat16 or float32, or train with a lower learning rate",
            )
        return merged

    @torch.no_grad()
    def merged_bias(
        self, dtype: torch.dtype, adapter_names: Sequence[str] | None = None
    ) -> Tensor | None:
        """The bias with adapters in it, a new tensor; or None."""
        names = self.active_here() if adapter_names is None else adapter_names
        bias = self.geometry.bias
        merged = None if bias is None else bias.detach().float().clone()
        for name in names:
            factors = self.factors(name)
            if factors.bias is not None:
                added = factors.s * factors.bias.float()
                if factors.magnitude is not None:
                    added = added * factors.magnitude
                merged = added if merged is None else merged + added
        return None if merged is None else merged.to(dtype)

    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """A new plain layer; a 4-bit base becomes one of floats."""
        return self._rebuilt(dtype, None)

    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """Weight and bias of the plain layer."""
        geometry = self.geometry
        weight = geometry.to_layout(
            torch.empty(geometry.out_features, geometry.in_features, device="meta")
        )
        yield MergedTensor(
            f"{prefix}weight", tuple(weight.shape), dtype, lambda: self.merged_weight(dtype)
        )
        has_bias = geometry.bias is not None or any(
            self.specs[name].bias for name in self.active_here()
        )
        if has_bias:

            def compute() -> Tensor:
                return cast(Tensor, self.merged_bias(dtype))

            yield MergedTensor(f"{prefix}bias", (geometry.out_features,), dtype, compute)

    def merge(self, adapter_names: Sequence[str], dtype: torch.dtype) -> None:
        """Compute with merged weights from now on; the base stays beside them, untouched."""
        names = [name for name in adapter_names if name in self.specs]
        if names:
            self._merged = [self._rebuilt(dtype, names)]
            self.merged_adapters = names

    def unmerge(self) -> None:
        """Drop what `merge` made: the base was there all along."""
        self._merged, self.merged_adapters = [], []

    @property
    def merged(self) -> bool:
        """Whether the layer computes with merged weights."""
        return bool(self._merged)

    def _rebuilt(self, dtype: torch.dtype, adapter_names: Sequence[str] | None) -> nn.Module:
        weight = self.merged_weight(dtype, adapter_names)
        module = self.geometry.rebuilt(weight, self.merged_bias(dtype, adapter_names))
        return module.train(self.training)

    # ------------------------------------------------------------------- as others expect it

    @property
    def r(self) -> dict[str, int]:
        """Rank by adapter."""
        return {name: spec.r for name, spec in self.specs.items()}

    @property
    def lora_alpha(self) -> dict[str, float]:
        """Alpha by adapter."""
        return {name: spec.alpha for name, spec in self.specs.items()}

    @property
    def scaling(self) -> dict[str, float]:
        """s by adapter."""
        return {name: spec.scaling for name, spec in self.specs.items()}

    @property
    def active_adapters(self) -> list[str]:
        """Of the model."""
        return list(self.state.active)

    def get_base_layer(self) -> nn.Module:
        """The layer as it was."""
        return self.base_layer

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What merging this adapter would add, in the base weight's layout, float32."""
        with torch.no_grad():
            base_OD = self.geometry.weight_matrix(torch.float32)
            delta = self.factors(adapter_name).fold_into(base_OD.clone()).sub_(base_OD)
        return self.geometry.to_layout(delta)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"adapters={self.r}, active={list(self.state.active)}"


def finished(y: Tensor, factors: Factors, base_bias: Tensor | None) -> Tensor:
    """Bias and magnitude of an update whose s · B A is in `y` already; outputs are last."""
    if factors.bias is not None:
        y = y + (factors.s * factors.bias).to(y.dtype)
    if factors.magnitude is None:
        return y
    c = factors.magnitude.to(y.dtype)
    if base_bias is None:
        return y * c
    own = base_bias.to(y.dtype)
    return (y - own) * c + own


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
