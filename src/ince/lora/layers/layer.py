"""`LoraLayer`: a frozen layer with low-rank updates beside it.

The base layer is wrapped, never changed: not by a forward, not by ``train()``, not by a merge.
Adapters lie in module dictionaries under their names, as in PEFT, so that parameter names
agree. They are float32 whatever the base is, since AdamW's small steps would be lost in 16
bits; products are made in the precision of the input.

What an adapter's tensors are is its variant's to say (`ince.lora.variants`); how the base
multiplies is its geometry's (`ince.lora.layers.kinds`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.factors import Factors
from ince.lora.layers.adapted import Adapted, MergedTensor
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.kinds import geometry_of, why_not
from ince.lora.layers.merging import merged_bias, merged_tensors, merged_weight, weight_change
from ince.lora.layers.output import one, summed
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
from ince.lora.mixed import StackCache, mixed_forward
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
            raise AdapterError(f"the layer {why_not(base_layer)}")
        self.base_layer = base_layer
        self.state = AdapterState() if state is None else state
        self.specs: dict[str, AdapterSpec] = {}
        self.merged_adapters: list[str] = []
        self._suffixes: dict[str, tuple[str, ...]] = {}
        self._geometry = geometry
        self.stacks = StackCache()
        self._kept: dict[tuple[str, str], tuple[object, Tensor]] = {}
        # In a list, so that it is no submodule: what is merged is neither saved nor counted.
        self._merged: list[nn.Module] = []
        self._merged_from: object = None
        self.train(base_layer.training)

    # ------------------------------------------------------------------------------ adapters

    def add_adapter(
        self, adapter_name: str, spec: AdapterSpec, given: GivenTensors | None = None
    ) -> None:
        """Make an adapter's tensors, on the base's device; and its dropout.

        Args:
            adapter_name: of the adapter.
            spec: what it is here.
            given: its tensors by the ends of their names; without them they are not yet set.

        Raises:
            AdapterError: this kind of layer cannot carry such an adapter.
        """
        variant = VARIANTS[spec.variant]
        refusal = self.geometry.refusal(spec) or variant.refusal(self.geometry)
        if refusal is not None:
            raise AdapterError(f"the layer {refusal}", got=spec)
        device = _tensors(self.base_layer)[0].device
        shapes = variant.shapes(self.geometry, spec)
        for suffix, shape in shapes.items():
            if given is None:
                empty = torch.empty(shape, device=device, dtype=torch.float32)
                put_parameter(self, adapter_name, suffix, empty)
            else:
                tensor, wanted = given.own(suffix, device), given.requires_grad
                put_parameter(self, adapter_name, suffix, tensor, requires_grad=wanted)
        put_dropout(self, adapter_name, spec.dropout)
        self.specs[adapter_name] = spec
        self._suffixes[adapter_name] = tuple(shapes)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out."""
        if self.specs.pop(adapter_name, None) is not None:
            remove_parameters(self, adapter_name)
            del self._suffixes[adapter_name]
            self.stacks.clear()
            self._kept = {key: value for key, value in self._kept.items() if key[0] != adapter_name}
            if adapter_name in self.merged_adapters:
                self.unmerge()

    def adapter_names(self) -> tuple[str, ...]:
        """The adapters in this layer."""
        return tuple(self.specs)

    def has_adapter(self, adapter_name: str) -> bool:
        """Whether there is one of this name here."""
        return adapter_name in self.specs

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """By the end of the name in a file, such as ``lora_A.weight``."""
        suffixes = self._suffixes.get(adapter_name, ())
        return {suffix: get_parameter(self, adapter_name, suffix) for suffix in suffixes}

    def parameter(self, adapter_name: str, suffix: str) -> Tensor:
        """One tensor of an adapter."""
        return get_parameter(self, adapter_name, suffix)

    def factor_parameters(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A and B as they are kept: an embedding's and a convolution's have their own shapes."""
        a, b = self.geometry.factor_names
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
        """What `compute` gives for the adapter and the base as they are; when serving, once.

        While something trains it is computed anew each time: optimizers may write to a
        parameter without leaving a trace that could be looked for.
        """
        if torch.compiler.is_compiling():
            return compute()
        tensors = [*self.tensors(adapter_name).values(), *_tensors(self.geometry.base)]
        if self.training or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            self._kept.pop((adapter_name, key), None)
            return compute()
        try:
            stamp = tuple([(tensor.data_ptr(), tensor._version) for tensor in tensors])
        except RuntimeError:  # tensors of inference mode do not count their changes
            return compute()
        found = self._kept.get((adapter_name, key))
        if found is None or found[0] != stamp:
            # What is made in inference mode could never be used outside of it.
            with torch.inference_mode(False):
                found = (stamp, compute())
            self._kept[adapter_name, key] = found
        return found[1]

    def train(self, mode: bool = True) -> Self:
        """As every module; and what was kept for serving is forgotten."""
        self._kept.clear()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Modules are moved and cast by this. What is merged moves along.
        is_of_now = self._stamp(self.merged_adapters) == self._merged_from
        super()._apply(fn, recurse)
        for module in self._merged:
            module._apply(fn, recurse)
        if self._merged and is_of_now:
            self._merged_from = self._stamp(self.merged_adapters)
        self._kept.clear()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without what was kept: its stamps are addresses of this process."""
        return {**self.__dict__, "_kept": {}}

    # ------------------------------------------------------------------------------- forward

    @property
    def geometry(self) -> Geometry:
        """How the base multiplies; renewed when `base_layer` was replaced."""
        # Straight to the dictionary: this is on the way of every forward.
        base = self._modules["base_layer"]
        if self._geometry.base is not base:
            assert base is not None
            geometry = geometry_of(base)
            assert geometry is not None  # a quantized or moved layer is of the same kind
            self._geometry = geometry
        return self._geometry

    def forward(self, x: Tensor) -> Tensor:
        """What the base takes to what it gives, in the dtype that it gives."""
        state = self.state
        if state.disabled:
            return self.base_layer(x)
        if state.routing is not None:
            return mixed_forward(self, x, state.routing)
        if self._merged:
            return self._merged_by_now()(x)
        names = [name for name in state.active if name in self.specs]
        if not names:
            return self.base_layer(x)
        return one(self, x, names[0]) if len(names) == 1 else summed(self, x, names)

    def dropout_of(self, adapter_name: str) -> float:
        """The dropout that applies now: 0 outside training."""
        return self.specs[adapter_name].dropout if self.training else 0.0

    # ------------------------------------------------------------------------------- merging

    def merged_weight(
        self, dtype: torch.dtype, adapter_names: Sequence[str] | None = None
    ) -> Tensor:
        """W with adapters in it, in the base's own layout; see `ince.lora.layers.merging`."""
        return merged_weight(
            self, dtype, self.active_here() if adapter_names is None else adapter_names
        )

    def merged_bias(
        self, dtype: torch.dtype, adapter_names: Sequence[str] | None = None
    ) -> Tensor | None:
        """The bias with adapters in it, a new tensor; or None."""
        return merged_bias(
            self, dtype, self.active_here() if adapter_names is None else adapter_names
        )

    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """A new plain layer; a 4-bit base becomes one of floats."""
        return self._rebuilt(dtype, None)

    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """Weight and bias of the plain layer.

        Raises:
            AdapterError: an adapter has a bias and the base none: the plain model has no place.
        """
        return merged_tensors(self, prefix, dtype)

    def merge(self, adapter_names: Sequence[str], dtype: torch.dtype) -> None:
        """Compute with merged weights from now on; the base stays beside them, untouched."""
        names = [name for name in adapter_names if name in self.specs]
        if names:
            self._merged = [self._rebuilt(dtype, names)]
            self.merged_adapters, self._merged_from = names, self._stamp(names)

    def unmerge(self) -> None:
        """Drop what `merge` made: the base was there all along."""
        self._merged, self.merged_adapters, self._merged_from = [], [], None

    def _merged_by_now(self) -> nn.Module:
        """The merged layer; merged again when an adapter in it has other weights by now."""
        names = self.merged_adapters
        if not torch.compiler.is_compiling() and self._stamp(names) != self._merged_from:
            self.merge(names, next(self._merged[0].parameters()).dtype)
        return self._merged[0]

    def _stamp(self, adapter_names: Sequence[str]) -> object:
        """Where the adapters' weights lie, and how often they were changed."""
        try:
            return [
                (tensor.data_ptr(), tensor._version)
                for name in adapter_names
                for tensor in self.tensors(name).values()
            ]
        except RuntimeError:  # tensors of inference mode do not count their changes
            return None

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
    def in_features(self) -> int:
        """What A sees: inputs, channels of a convolution, rows of an embedding."""
        return self.geometry.factor_shapes(1)[self.geometry.factor_names.a][1]

    @property
    def out_features(self) -> int:
        """What B gives."""
        return self.geometry.out_features

    @property
    def use_dora(self) -> dict[str, bool]:
        """Whether it has a magnitude, by adapter."""
        return {name: spec.variant == "dora" for name, spec in self.specs.items()}

    @property
    def lora_bias(self) -> dict[str, bool]:
        """Whether B has a bias, by adapter."""
        return {name: spec.bias for name, spec in self.specs.items()}

    @property
    def active_adapters(self) -> list[str]:
        """Of the model."""
        return list(self.state.active)

    def get_base_layer(self) -> nn.Module:
        """The layer as it was."""
        return self.base_layer

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What merging this adapter would add, in the base weight's layout, float32."""
        return weight_change(self, adapter_name)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"adapters={self.r}, active={list(self.state.active)}"


def _tensors(layer: nn.Module) -> list[Tensor]:
    """Of a layer without layers inside, as all that can be adapted are."""
    tables = vars(layer)
    found = (*tables["_parameters"].values(), *tables["_buffers"].values())
    return [tensor for tensor in found if tensor is not None]
