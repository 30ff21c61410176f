"""`Room`: all tensors of one adapter in a model, laid out in one flat block of memory.

The parameters of the adapter are views of the block, so that a whole adapter changes by one
copy of one tensor, whatever the number of layers. Addresses, shapes and types stay, which is
what a compiled model asks of its parameters. The scale is folded into B, since a number in
Python would be a constant of the compiled code: ``s · B A = (s B) A``.

An adapter of a lower rank fills its rows of A and columns of B; the others are zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.factors import Factors
from ince.lora.layers.adapted import PREFIX
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.parameters import put_parameter
from ince.lora.layers.spec import AdapterSpec
from ince.lora.placement.inject import lora_layers
from ince.lora.variants.dora import row_norms

__all__ = ["Room", "Tenant", "check_layers"]

_MAGNITUDE = "lora_magnitude_vector"
_VARIANTS = ("lora", "dora")


@dataclass(frozen=True)
class Tenant:
    """What is to move into a room: tensors by PEFT's names, and the spec of each layer.

    Attributes:
        tensors: A and B, and what the variant has besides, of every layer of the adapter.
        specs: by the dotted name of the layer.
    """

    tensors: Mapping[str, Tensor]
    specs: Mapping[str, AdapterSpec]


@dataclass(frozen=True)
class _Part:
    """One layer's share of the block: its tensors by suffix, each a view."""

    name: str
    layer: LoraLayer
    rank: int
    views: Mapping[str, tuple[int, tuple[int, ...]]]


class Room:
    """The tensors of `adapter_name` in a model, moved into one block.

    Args:
        model: a plain model (of a `PeftModel`, its base model) that has the adapter.
        adapter_name: whose scale becomes 1; its values are kept, the scale folded into B.

    Raises:
        AdapterError: the adapter is more than A, B and DoRA's magnitude in layers.
    """

    def __init__(self, model: nn.Module, adapter_name: str) -> None:
        self.adapter_name = adapter_name
        layers = [(n, layer) for n, layer in lora_layers(model) if adapter_name in layer.specs]
        check_layers(layers, adapter_name)
        self._parts: list[_Part] = []
        offset = 0
        for name, layer in layers:
            views: dict[str, tuple[int, tuple[int, ...]]] = {}
            for suffix, tensor in layer.tensors(adapter_name).items():
                views[suffix] = (offset, tuple(tensor.shape))
                offset += tensor.numel()
            self._parts.append(_Part(name, layer, layer.specs[adapter_name].r, views))
        device = next(iter(layers[0][1].tensors(adapter_name).values())).device
        self.blank = torch.zeros(offset, dtype=torch.float32, device=device)
        for part in self._parts:
            _fill_magnitude(part, self.blank)
        current = Tenant(
            {
                f"{PREFIX}{name}.{suffix}": tensor.detach()
                for name, layer in layers
                for suffix, tensor in layer.tensors(adapter_name).items()
            },
            {name: layer.specs[adapter_name] for name, layer in layers},
        )
        self.block = self.packed(current)
        for part in self._parts:
            _settle(part, adapter_name, self.block)

    def is_of(self, model: nn.Module) -> bool:
        """Whether the adapter in `model` still has the layers and the sizes of this room."""
        name = self.adapter_name
        here = [layer for _, layer in lora_layers(model) if name in layer.specs]
        return here == [part.layer for part in self._parts] and all(
            part.layer.start_of(name) is None
            and {suffix: tuple(t.shape) for suffix, t in part.layer.tensors(name).items()}
            == {suffix: shape for suffix, (_, shape) in part.views.items()}
            for part in self._parts
        )

    @property
    def num_bytes(self) -> int:
        """Of the block."""
        return self.block.numel() * self.block.element_size()

    @torch.no_grad()
    def packed(self, tenant: Tenant, *, device: torch.device | None = None) -> Tensor:
        """`tenant` in the layout of this room: a flat float32 tensor that `move_in` copies.

        Raises:
            AdapterError: it touches layers that the room does not have, or its rank is higher.
        """
        self._check_fits(tenant)
        device = self.blank.device if device is None else device
        block = self.blank.to(device, copy=True)
        for part in self._parts:
            spec = tenant.specs.get(part.name)
            if spec is None:
                continue
            a_suffix, b_suffix, *_ = part.layer.geometry.factor_shapes(1)
            for suffix, (offset, shape) in part.views.items():
                view = block[offset : offset + math.prod(shape)].view(shape)
                tensor = tenant.tensors[f"{PREFIX}{part.name}.{suffix}"].to(device)
                if suffix == a_suffix:
                    view[: spec.r].copy_(tensor)
                elif suffix == b_suffix:
                    torch.mul(tensor, spec.scaling, out=view[:, : spec.r])
                elif suffix.endswith(".bias"):
                    torch.mul(tensor, spec.scaling, out=view)
                else:
                    view.copy_(tensor)
        return block

    @torch.no_grad()
    def move_in(self, packed: Tensor) -> None:
        """Overwrite the adapter by one copy."""
        part = self._parts[0]
        suffix, (offset, _) = next(iter(part.views.items()))
        lies = part.layer.parameter(self.adapter_name, suffix)
        if lies.data_ptr() != self.block.data_ptr() + offset * self.block.element_size():
            # The model was moved, parameter by parameter: the block follows it.
            self.blank = self.blank.to(lies.device)
            self.block = torch.empty_like(self.blank)
            for part in self._parts:
                _settle(part, self.adapter_name, self.block)
        self.block.copy_(packed)

    def _check_fits(self, tenant: Tenant) -> None:
        own = {part.name: part for part in self._parts}
        strange = [name for name in tenant.specs if name not in own]
        if strange:
            raise AdapterError(
                f"the adapter touches {len(strange)} layers that the slot does not have",
                got=", ".join(strange[:5]),
                expected=f"some of {len(own)} layers, such as {next(iter(own))}",
                do="make the slots with target_modules that cover all adapters",
            )
        for name, spec in tenant.specs.items():
            part = own[name]
            if spec.r > part.rank:
                raise AdapterError(
                    "the adapter's rank is higher than the slot's",
                    where=name,
                    got=f"r={spec.r}",
                    expected=f"at most {part.rank}",
                    do="make the slots with a higher r, or reduce the adapter's rank",
                )
            own_spec = part.layer.specs[self.adapter_name]
            if (spec.variant, spec.bias) != (own_spec.variant, own_spec.bias):
                raise AdapterError(
                    "the adapter is of another variant than the slot",
                    where=name,
                    got=_described(spec),
                    expected=_described(own_spec),
                    do="make slots for each variant",
                )


def _fill_magnitude(part: _Part, block: Tensor) -> None:
    """Where DoRA's magnitude is in an empty room, the base's: ‖W‖, so that c is 1."""
    if _MAGNITUDE in part.views:
        geometry = part.layer.geometry
        none = Factors(
            torch.zeros(1, geometry.in_features, device=block.device),
            torch.zeros(geometry.out_features, 1, device=block.device),
            0.0,
        )
        offset, shape = part.views[_MAGNITUDE]
        block[offset : offset + math.prod(shape)].copy_(row_norms(geometry, none))


def _settle(part: _Part, adapter_name: str, block: Tensor) -> None:
    """Make the layer's parameters views of the block, and its scale 1."""
    layer = part.layer
    trained = {s: t.requires_grad for s, t in layer.tensors(adapter_name).items()}
    for suffix, (offset, shape) in part.views.items():
        view = block[offset : offset + math.prod(shape)].view(shape)
        put_parameter(layer, adapter_name, suffix, view)
        layer.parameter(adapter_name, suffix).requires_grad_(trained[suffix])
    old = layer.specs[adapter_name]
    layer.specs[adapter_name] = AdapterSpec(
        r=old.r, alpha=old.r, scaling=1.0, dropout=old.dropout, variant=old.variant, bias=old.bias
    )


def check_layers(layers: Sequence[tuple[str, LoraLayer]], adapter_name: str) -> None:
    """Whether these layers' tensors of an adapter can lie in a `Room`.

    Raises:
        AdapterError: they cannot.
    """
    if not layers:
        raise AdapterError(f"no layer of the model has the adapter {adapter_name!r}")
    for name, layer in layers:
        spec = layer.specs[adapter_name]
        if spec.variant not in _VARIANTS:
            raise AdapterError(
                "an adapter of another method than LoRA cannot be in a slot",
                where=name,
                got=spec.variant,
                expected=" or ".join(_VARIANTS),
                do="load it beside the others and switch with set_adapter",
            )
        if getattr(layer.base_layer, "groups", 1) > 1:
            raise AdapterError("a grouped convolution cannot be in a slot", where=name)
        if layer.start_of(adapter_name) is not None:
            raise AdapterError(
                "an adapter with a start of its own cannot be in a slot",
                where=name,
                do="save it in its plain form, and load that",
            )


def _described(spec: AdapterSpec) -> str:
    return spec.variant + (" with lora_bias" if spec.bias else "")
