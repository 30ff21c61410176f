"""The first values of an adapter: which start a config asks for, and setting it in a layer.

The mathematics is in `ince.lora.starts`. A start never changes the base: where a published one
does (PiSSA, OLoRA, LoRA-GA), what it takes off the base is kept beside A and B. LoftQ alone
puts something in the base's place, its 4-bit form, since that is what it is for.

Starts from data (EVA, LoRA-GA) come in two steps, as in PEFT: the adapter begins as plain LoRA,
and `ince.lora.starts.from_data` sets it when the data have been seen.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora.config import LoraConfig, LoraGAConfig
from ince.lora.layers.embedding import EmbeddingGeometry
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.starts import drawn
from ince.lora.starts.loftq import loftq
from ince.lora.starts.lora_ga import Gradient, lora_ga
from ince.lora.starts.principal import olora, pissa
from ince.lora.starts.start import Start
from ince.lora.variants import VARIANTS
from ince.quant import Linear4bit, NF4Config

__all__ = [
    "attach_gradient",
    "found_again",
    "is_found_again",
    "put_base",
    "put_start",
    "start_adapter",
]

_FLOAT32 = torch.float32
# Not a buffer: it is neither saved nor moved, and gone when an adapter has started from it.
_GRADIENT = "_ince_first_gradient"
_POWER_ITERATIONS = "pissa_niter_"
# PEFT draws the projection of "pissa_niter_N" anew at each load; here it is the same each time.
_SEED = 0


@torch.no_grad()
def start_adapter(
    layer: LoraLayer, adapter_name: str, config: LoraConfig, *, name: str = "weight"
) -> None:
    """Set A and B and B's bias, and then what the variant derives from them.

    Args:
        layer: that has the adapter, its tensors not yet set.
        adapter_name: of the adapter.
        config: whose `init_lora_weights` says how.
        name: of the layer, for messages.

    Raises:
        AdapterError: the layer has no such start: a rank above its size, a weight that is not
            finite, a base that is quantized already.
    """
    spec = layer.specs[adapter_name]
    put_start(layer, adapter_name, _start(layer.geometry, spec, config, name), name=name)
    drop_gradient(layer)


@torch.no_grad()
def put_start(layer: LoraLayer, adapter_name: str, start: Start, *, name: str = "weight") -> None:
    """Write a start into an adapter's tensors, in their shapes and on their device."""
    put_base(layer, adapter_name, start, name=name)
    spec = layer.specs[adapter_name]
    a, b = layer.factor_parameters(adapter_name)
    a.copy_(start.a_RD.view(a.shape))
    b.copy_(start.b_OR.view(b.shape))
    if spec.bias:
        bias = layer.parameter(adapter_name, "lora_B.bias")
        bias.zero_() if start.bias_O is None else bias.copy_(start.bias_O)
    VARIANTS[spec.variant].finish(layer, adapter_name)


@torch.no_grad()
def put_base(layer: LoraLayer, adapter_name: str, start: Start, *, name: str = "weight") -> None:
    """What a start says about the base: what is taken off it, or what takes its place.

    Raises:
        AdapterError: the base is to be quantized, and other adapters stand on it.
    """
    if start.quantized is not None:
        others = [other for other in layer.adapter_names() if other != adapter_name]
        if others:
            raise AdapterError(
                "LoftQ quantizes the base, which other adapters stand on",
                where=name,
                got=", ".join(others),
                do="start with the LoftQ adapter, and add the others to it",
            )
        layer.base_layer = start.quantized.train(layer.training)
    if start.base_change is not None:
        a, b = layer.factor_parameters(adapter_name)
        a0, b0 = start.base_change
        layer.set_start(adapter_name, a0.view(a.shape).to(a.device), b0.view(b.shape).to(b.device))


def is_found_again(config: LoraConfig, *, where: object = None) -> bool:
    """Whether a written adapter of this config is to be completed from the base's weights.

    Raises:
        AdapterError: its start came from data, which the file does not hold.
    """
    kind = config.init_lora_weights
    if kind == "lora_ga":
        raise AdapterError(
            "the start of this adapter came from gradients and is not in its file",
            where=where,
            got="init_lora_weights 'lora_ga'",
            do="save it with path_initial_model_for_weight_conversion where it was trained",
        )
    return kind in ("loftq", "olora") or (isinstance(kind, str) and kind.startswith("pissa"))


@torch.no_grad()
def found_again(
    geometry: Geometry, spec: AdapterSpec, config: LoraConfig, *, name: str = "weight"
) -> Start | None:
    """The start that a written adapter had, from the base's weight; None where there is none.

    "pissa_niter_N" was a random projection: what is found is near it, as it is in PEFT.

    Raises:
        AdapterError: see `start_adapter`.
    """
    if isinstance(geometry, EmbeddingGeometry):
        return None
    if config.init_lora_weights == "loftq" and isinstance(geometry.base, Linear4bit):
        # One iteration leaves the base as any quantization to NF4 makes it.
        if _loftq_iterations(config) > 1:
            raise _not_the_base_of_loftq(name)
        return None
    return _start(geometry, spec, config, name)


# ------------------------------------------------------------------------------- by the config


def _start(geometry: Geometry, spec: AdapterSpec, config: LoraConfig, name: str) -> Start:
    kind = config.init_lora_weights
    shape_a, shape_b = geometry.factor_shapes(spec.r).values()
    if isinstance(geometry, EmbeddingGeometry):
        (rows_a, columns_a), (rows_b, columns_b) = shape_a, shape_b
        sizes = (rows_a, columns_a), (rows_b, columns_b)
        return drawn.embedding(*sizes, identity=kind is not False)
    if kind is False:
        return drawn.uniform(shape_a, shape_b, bias=spec.bias)
    if kind == "gaussian":
        return drawn.gaussian(shape_a, shape_b, r=spec.r, bias=spec.bias)
    if isinstance(kind, str) and (from_weight := _from_weight(kind)) is not None:
        if len(shape_a) != 2:
            raise AdapterError(
                f"the start {kind!r} is one of linear layers",
                where=name,
                got=f"a {type(geometry.base).__name__}",
                do="leave it out of target_modules, or set init_lora_weights=True",
            )
        return from_weight(geometry, spec, config, name)
    return drawn.kaiming(shape_a, shape_b, bias=spec.bias)


_FromWeight = Callable[[Geometry, AdapterSpec, LoraConfig, str], Start]


def _from_weight(kind: str) -> _FromWeight | None:
    return _pissa if kind.startswith("pissa") else _FROM_WEIGHT.get(kind)


def _pissa(geometry: Geometry, spec: AdapterSpec, config: LoraConfig, name: str) -> Start:
    kind = str(config.init_lora_weights)
    weight_OD = geometry.weight_matrix(_FLOAT32)
    if kind == "pissa":
        return pissa(weight_OD, spec.r, spec.scaling, name=name)
    num_iterations = int(kind.removeprefix(_POWER_ITERATIONS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return pissa(weight_OD, spec.r, spec.scaling, num_iterations=num_iterations, name=name)


def _olora(geometry: Geometry, spec: AdapterSpec, config: LoraConfig, name: str) -> Start:
    del config
    return olora(geometry.weight_matrix(_FLOAT32), spec.r, name=name)


def _orthogonal(geometry: Geometry, spec: AdapterSpec, config: LoraConfig, name: str) -> Start:
    del config
    shape_a = (spec.r, geometry.in_features)
    return drawn.orthogonal(shape_a, (geometry.out_features, spec.r), bias=spec.bias, name=name)


def _loftq(geometry: Geometry, spec: AdapterSpec, config: LoraConfig, name: str) -> Start:
    if isinstance(geometry.base, Linear4bit):
        raise AdapterError(
            "LoftQ starts from the original weight, and this one is in 4 bits already",
            where=name,
            do="load the model without quantization; or use replace_lora_weights_loftq, which "
            "reads the originals from their checkpoint",
        )
    if type(geometry.base) is not nn.Linear:
        raise AdapterError(
            "LoftQ quantizes linear layers",
            where=name,
            got=type(geometry.base).__name__,
            do="leave it out of target_modules",
        )
    settings = config.loftq_config
    return loftq(
        geometry.weight_matrix(_FLOAT32),
        spec.r,
        spec.scaling,
        config=NF4Config.model_validate({"compute_dtype": _name_of(geometry.compute_dtype)}),
        num_bits=4 if settings is None else settings.loftq_bits,
        num_iterations=_loftq_iterations(config),
        bias=geometry.bias,
        name=name,
    )


def _lora_ga(geometry: Geometry, spec: AdapterSpec, config: LoraConfig, name: str) -> Start:
    gradient = geometry.base.__dict__.get(_GRADIENT)
    if gradient is None:
        raise AdapterError(
            "LoRA-GA starts from a gradient, and there is none for this layer",
            where=name,
            do="call preprocess_loraga(model, config, train_step) before get_peft_model",
        )
    settings = config.lora_ga_config or LoraGAConfig()
    return lora_ga(
        cast(Gradient, gradient),
        geometry.weight_matrix(_FLOAT32),
        spec.r,
        spec.scaling,
        direction=settings.direction,
        scale=settings.scale,
        stable_gamma=settings.stable_gamma,
        name=name,
    )


def attach_gradient(layer: nn.Module, gradient: Gradient) -> None:
    """Leave a base layer's first gradient with it, for the adapter that starts from it."""
    base = layer.base_layer if isinstance(layer, LoraLayer) else layer
    base.__dict__[_GRADIENT] = gradient


def drop_gradient(layer: LoraLayer) -> None:
    """Forget what `attach_gradient` left."""
    layer.base_layer.__dict__.pop(_GRADIENT, None)


_FROM_WEIGHT: Mapping[str, _FromWeight] = MappingProxyType(
    {"olora": _olora, "orthogonal": _orthogonal, "loftq": _loftq, "lora_ga": _lora_ga}
)


def _loftq_iterations(config: LoraConfig) -> int:
    return 1 if config.loftq_config is None else config.loftq_config.loftq_iter


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_the_base_of_loftq(name: str) -> AdapterError:
    return AdapterError(
        "LoftQ made a base of its own for this adapter, and the model's is another",
        where=name,
        got="loftq_iter above 1, and a base that is in 4 bits already",
        do="load the model without quantization: LoftQ is repeated on it",
    )
