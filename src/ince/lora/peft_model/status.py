"""What the adapters of a model are in: per layer, and all together.

Names, fields and values are PEFT's. "irregular" is a mixture; as ince holds what is active once
for the whole model, only gradients, devices and merges can be.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ince.errors import AdapterError
from ince.lora.layers.adapted import Adapted, adapted_modules
from ince.lora.layers.layer import LoraLayer
from ince.lora.peft_model.lora_model import LoraModel
from ince.quant import Linear4bit, num_weights

__all__ = ["TunerLayerStatus", "TunerModelStatus", "get_layer_status", "get_model_status"]

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One adapted module.

    Attributes:
        name: dotted, in the `LoraModel`, or in the model given.
        module_type: such as "lora.Linear".
        enabled: whether adapters act.
        active_adapters: of the model.
        merged_adapters: with which the layer computes merged.
        requires_grad: by adapter, whether its weights here take gradients.
        available_adapters: that are in the module, by name.
        devices: by adapter, the kinds of device its weights lie on.
        quantization_backend: "ince nf4" over a 4-bit layer, else None.
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


@dataclass
class TunerModelStatus:
    """All adapted modules of a model; fields as in `TunerLayerStatus`.

    Attributes:
        base_model_type: the base's class.
        adapter_model_type: "LoraModel", or "None" for a model without it.
        peft_types: by adapter.
        trainable_params: weights that are trained. total_params: all weights; one in 4 bits
            counts as one.
        num_adapter_layers: adapted modules.
    """

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The status of each adapted module, in the model's order.

    Args:
        model: a `PeftModel`, or a model that adapters were injected into.

    Raises:
        AdapterError: there is none.
    """
    tuner = _tuner(model)
    base, prefix = (model, "") if tuner is None else (tuner.model, "model.")
    found = [_layer_status(prefix + name, module) for name, module in adapted_modules(base)]
    if not found:
        raise AdapterError(
            "the model has no adapted layer",
            got=type(base).__name__,
            do="call get_peft_model or inject_adapter_in_model first",
        )
    return found


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The status of a model's adapters.

    Args:
        model: a `PeftModel`, or a model that adapters were injected into.

    Raises:
        AdapterError: it has no adapted layer.
    """
    tuner = _tuner(model)
    layers = get_layer_status(model)
    merged = {name for layer in layers for name in layer.merged_adapters}
    is_partly = any(
        merged.intersection(layer.available_adapters).difference(layer.merged_adapters)
        for layer in layers
    )
    backends = {layer.quantization_backend for layer in layers}
    return TunerModelStatus(
        base_model_type=_base_type(model if tuner is None else tuner.model, tuner),
        adapter_model_type="None" if tuner is None else type(tuner).__name__,
        peft_types={}
        if tuner is None
        else {name: str(config.peft_type) for name, config in tuner.peft_config.items()},
        trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_params=num_weights(model),
        num_adapter_layers=len(layers),
        enabled=layers[0].enabled,
        active_adapters=layers[0].active_adapters,
        merged_adapters="irregular" if is_partly else sorted(merged),
        requires_grad=_gathered_gradients(layers),
        available_adapters=sorted({name for layer in layers for name in layer.available_adapters}),
        devices=_gathered_devices(layers),
        quantization_backend=backends.pop() if len(backends) == 1 else "irregular",
    )


def _tuner(model: nn.Module) -> LoraModel | None:
    """The `LoraModel` in a `PeftModel`, by what it is and not by what it is called."""
    if isinstance(model, LoraModel):
        return model
    inner = getattr(model, "base_model", None)
    return inner if isinstance(inner, LoraModel) else None


def _base_type(base: nn.Module, tuner: LoraModel | None) -> str:
    # PEFT names the class of transformers' models alone, where there is no shell.
    is_named = tuner is not None or hasattr(base, "config")
    return type(base).__name__ if is_named else "other"


def _layer_status(name: str, module: Adapted) -> TunerLayerStatus:
    adapters = sorted(module.adapter_names())
    tensors = {adapter: list(module.tensors(adapter).values()) for adapter in adapters}
    layer = next((each for each in module.chain() if isinstance(each, LoraLayer)), None)
    base = module.get_base_layer()
    return TunerLayerStatus(
        name=name,
        module_type=type(module).__name__ if layer is not module else f"lora.{_kind(base)}",
        enabled=not module.state.disabled,
        active_adapters=list(module.state.active),
        merged_adapters=[] if layer is None else list(layer.merged_adapters),
        requires_grad={
            key: _all_or_none(t.requires_grad for t in tensors[key]) for key in adapters
        },
        available_adapters=adapters,
        devices={key: sorted({t.device.type for t in tensors[key]}) for key in adapters},
        quantization_backend="ince nf4" if isinstance(base, Linear4bit) else None,
    )


def _kind(base: nn.Module) -> str:
    # PEFT has one class for linear layers, however they keep their weight.
    name = type(base).__name__
    return "Linear" if name == "Conv1D" else name


def _all_or_none(values: Iterable[bool | Irregular]) -> bool | Irregular:
    found = set(values)
    if found == {True}:
        return True
    return False if found <= {False} else "irregular"


def _gathered_gradients(layers: list[TunerLayerStatus]) -> dict[str, bool | Irregular]:
    names = dict.fromkeys(name for layer in layers for name in layer.requires_grad)
    return {
        name: _all_or_none(
            layer.requires_grad[name] for layer in layers if name in layer.requires_grad
        )
        for name in names
    }


def _gathered_devices(layers: list[TunerLayerStatus]) -> dict[str, list[str]]:
    devices: dict[str, set[str]] = {}
    for layer in layers:
        for name, kinds in layer.devices.items():
            devices.setdefault(name, set()).update(kinds)
    return {name: sorted(kinds) for name, kinds in devices.items()}
