"""Starts that look at data: EVA on a model that is adapted, LoRA-GA on one that will be.

The names and the order of calls are PEFT's:

    model = get_peft_model(base, LoraConfig(init_lora_weights="eva", ...))
    initialize_lora_eva_weights(model, dataloader)

    preprocess_loraga(base, config, train_step)      # config: init_lora_weights="lora_ga"
    model = get_peft_model(base, config)
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, ConfigError
from ince.lora.config import EvaConfig, LoraConfig
from ince.lora.layers.adapted import PREFIX, plain_model
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.linear import LinearGeometry
from ince.lora.layers.spec import AdapterSpec
from ince.lora.placement.inject import lora_layers, unwrap_empty
from ince.lora.placement.names import check_known
from ince.lora.placement.start import attach_gradient, put_start
from ince.lora.placement.targets import find_targets
from ince.lora.starts.eva import Watched, input_directions
from ince.lora.starts.first_gradient import first_gradients
from ince.lora.starts.modes import in_mode
from ince.lora.starts.rows import (
    Rows,
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
    rows_by_layer,
)
from ince.lora.starts.start import Start

if TYPE_CHECKING:
    from ince.lora.peft_model import PeftModel

__all__ = ["get_eva_state_dict", "initialize_lora_eva_weights", "preprocess_loraga"]

_Prepare = Callable[[Any, Any], Any]


def _read_mapping(model: nn.Module, batch: Any) -> object:
    return model(**batch)


@torch.no_grad()
def initialize_lora_eva_weights(
    model: "PeftModel",
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    forward_fn: Callable[[Any, Any], object] = _read_mapping,
    prepare_model_inputs_fn: _Prepare | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: Rows | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    show_progress_bar: bool = True,
) -> None:
    """Start a fresh EVA adapter from what its layers read, ranks redistributed.

    Layers that get no rank are the base's again. The adapter's config says the ranks that came
    out, in `rank_pattern`, and with `adjust_scaling_factors` the alphas that keep each scale.

    Args:
        model: with an adapter of ``init_lora_weights="eva"``.
        dataloader: batches; see `get_eva_state_dict`, as for the arguments that follow.
        eva_state_dict: of `get_eva_state_dict`, in place of `dataloader`.
        forward_fn: (model, batch).
        prepare_model_inputs_fn: (batch, config).
        prepare_layer_inputs_fn: (layer's input, what that returned, layer's name).
        adapter_name: of the adapter.
        show_progress_bar: of reading the batches.

    Raises:
        AdapterError: no such adapter, one of another start, or directions that do not fit.
        DataError: the data do not tell enough; see `input_directions`.
    """
    config = _eva_config(model, adapter_name)
    if eva_state_dict is None:
        if dataloader is None:
            raise AdapterError(
                "EVA starts from data, and there are none", do="give dataloader or eva_state_dict"
            )
        eva_state_dict = get_eva_state_dict(
            model,
            dataloader,
            config,
            forward_fn,
            prepare_model_inputs_fn,
            prepare_layer_inputs_fn,
            adapter_name,
            show_progress_bar,
        )
    base = model.get_base_model()
    layers = _layers(base, adapter_name)
    directions = _checked(layers, eva_state_dict)
    settings = config.eva_config or EvaConfig()
    ranks: dict[str, int] = {}
    alphas: dict[str, int | float] = {}
    for name, layer in layers.items():
        a_RD = directions[name]
        r, old = a_RD.shape[0], layer.specs[adapter_name]
        if r == 0:
            layer.delete_adapter(adapter_name)
            continue
        alpha = _adjusted(config, old, r) if settings.adjust_scaling_factors else old.alpha
        if r != old.r:
            layer.delete_adapter(adapter_name)
            layer.add_adapter(
                adapter_name,
                replace(old, r=r, alpha=alpha, scaling=config.scaling(r, alpha)),
            )
        put_start(layer, adapter_name, Start(a_RD, torch.zeros(layer.out_features, r)), name=name)
        if r != config.r:
            ranks[name] = r
        if alpha != config.lora_alpha:
            alphas[name] = alpha
    unwrap_empty(base)
    kept = tuple(name for name in layers if directions[name].shape[0] > 0)
    model.peft_config[adapter_name] = config.model_copy(
        update={"rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": kept}
    )
    model.set_adapter(list(model.active_adapters))


@torch.no_grad()
def get_eva_state_dict(
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: Callable[[Any, Any], object] = _read_mapping,
    prepare_model_inputs_fn: _Prepare | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: Rows | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """The directions that EVA starts A with: (rank, in) by the layer's name in the base.

    Args:
        model: a `PeftModel` with a fresh adapter, or a base with `peft_config`.
        dataloader: batches, read once, and not to the end when the directions settle before.
        peft_config: of the adapter; a `PeftModel` has its own.
        forward_fn: (model, batch) runs the model.
        prepare_model_inputs_fn: (batch, config) gives what the next one needs; None for nothing.
        prepare_layer_inputs_fn: (layer's input, that, layer's name) gives the rows (N, in)
            that count; or such functions by layer, others giving all rows; None for all.
        adapter_name: of the adapter.
        show_progress_bar: on a terminal.

    Raises:
        ConfigError: a base without `peft_config`.
        AdapterError: a layer is not linear, or smaller than its rank; or functions are for
            layers that are not adapted.
        DataError: the data do not tell enough.

    The base reads the data: adapters are off meanwhile, and the model in evaluation mode.
    """
    base = plain_model(model)
    if peft_config is None:
        if base is model:
            raise ConfigError("a base is not told how it will be adapted", do="give peft_config")
        peft_config = _eva_config(cast("PeftModel", model), adapter_name)
    config = peft_config
    settings = config.eva_config or EvaConfig()
    if base is not model:
        found = {
            name: (cast(nn.Module, layer), layer, layer.specs[adapter_name].r)
            for name, layer in _layers(base, adapter_name).items()
        }
    else:
        found = {
            target.name: (target.layer, _linear(target.layer, target.name), target.spec.r)
            for target in find_targets(base, config)
        }
    rho = float(settings.rho)
    watched = {
        name: _watched(module, linear, r, rho, name) for name, (module, linear, r) in found.items()
    }
    rows_of_layer = rows_by_layer(prepare_layer_inputs_fn, watched)
    prepare = prepare_model_inputs_fn
    prepared: list[Any] = [None]

    def read(batch: Any) -> object:
        return forward_fn(model, batch)

    def rows_of(name: str, args: tuple[Any, ...], batch: Any) -> Tensor:
        del batch
        return rows_of_layer[name](args[0] if len(args) == 1 else args, prepared[0], name)

    def batches() -> Iterable[Any]:
        device = next(base.parameters()).device
        for batch in _shown(dataloader, show_progress_bar):
            moved = _to(batch, device)
            prepared[0] = None if prepare is None else prepare(moved, config)
            yield moved

    # A base has no adapters to turn off.
    as_base = getattr(model, "disable_adapter", nullcontext)
    with in_mode(model, training=False), as_base():
        return input_directions(
            watched, batches(), read, rows_of, tau=float(settings.tau), whiten=settings.whiten
        )


def preprocess_loraga(
    model: nn.Module, lora_config: LoraConfig, train_step: Callable[[], object]
) -> None:
    """Gather the first gradient of every target layer, for a start with "lora_ga".

    Each layer keeps the leading directions of its gradient until an adapter starts from them.

    Args:
        model: the base, before `get_peft_model`. No gradient is left in it.
        lora_config: of the adapter.
        train_step: runs forward and ``backward()`` on one batch or several.

    Raises:
        AdapterError: a target that is no linear layer, or that got no gradient.
        ConfigError: the config does not fit the model.
        TrainingError: a gradient is not finite.
    """
    targets = find_targets(model, lora_config)
    layers: dict[str, tuple[nn.Module, int]] = {}
    for target in targets:
        _linear(target.layer, target.name)
        layers[target.name] = (target.layer, 2 * target.spec.r)
    gradients = first_gradients(layers, model, train_step)
    for target in targets:
        attach_gradient(target.layer, gradients[target.name])


def _eva_config(model: "PeftModel", adapter_name: str) -> LoraConfig:
    check_known(adapter_name, model.peft_config)
    config = model.peft_config[adapter_name]
    if not isinstance(config, LoraConfig) or config.init_lora_weights != "eva":
        raise AdapterError(
            "the adapter does not start with EVA",
            where=adapter_name,
            got=f"init_lora_weights {getattr(config, 'init_lora_weights', None)!r}",
            expected="init_lora_weights 'eva'",
        )
    return config


def _layers(base: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    found = {n: layer for n, layer in lora_layers(base) if adapter_name in layer.specs}
    for name, layer in found.items():
        _linear(layer, name)
    return found


def _linear(layer: nn.Module, name: str) -> LinearGeometry:
    geometry = layer.geometry if isinstance(layer, LoraLayer) else geometry_of(layer)
    if not isinstance(geometry, LinearGeometry):
        raise AdapterError(
            "a start from data is one of linear layers",
            where=name,
            got=type(layer.base_layer if isinstance(layer, LoraLayer) else layer).__name__,
            do="leave it out of target_modules",
        )
    return geometry


def _watched(
    module: nn.Module, linear: LinearGeometry | LoraLayer, r: int, rho: float, name: str
) -> Watched:
    limit = min(linear.in_features, linear.out_features)
    if r > limit:
        raise AdapterError(
            "EVA takes the rank from the layer, which has fewer directions",
            where=name,
            got=f"rank {r} of ({linear.out_features}, {linear.in_features})",
            expected=f"1 to {limit}",
            do="lower r, or give the layer a lower one in rank_pattern",
        )
    return Watched(module, linear.in_features, r, min(round(r * rho), limit))


def _adjusted(config: LoraConfig, old: AdapterSpec, r: int) -> float:
    """The alpha with which another rank has the same scale."""
    share = r / old.r
    return old.alpha * (math.sqrt(share) if config.use_rslora else share)


def _checked(
    layers: Mapping[str, LoraLayer], directions: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The directions by the base's names, each layer with its own."""
    found = {name.removeprefix(PREFIX): tensor for name, tensor in directions.items()}
    missing = [name for name in layers if name not in found]
    strange = [name for name in found if name not in layers]
    if missing or strange:
        raise AdapterError(
            "the directions are not those of the adapter's layers",
            got=f"{len(missing)} missing, {len(strange)} of no layer: "
            + ", ".join([*missing, *strange][:5]),
            do="make them with get_eva_state_dict on this model",
        )
    for name, layer in layers.items():
        tensor = found[name]
        if tensor.ndim != 2 or tensor.shape[1] != layer.in_features:
            raise AdapterError(
                "directions of another width",
                where=name,
                got=tuple(tensor.shape),
                expected=f"(rank, {layer.in_features})",
            )
    return found


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        items = cast("Mapping[Any, Any]", batch).items()
        return {key: _to(value, device) for key, value in items}
    if isinstance(batch, tuple | list):
        return [_to(each, device) for each in cast("list[Any]", batch)]
    return batch


def _shown(batches: Iterable[Any], is_shown: bool) -> Iterable[Any]:
    if not is_shown:
        return batches
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    total = len(batches) if isinstance(batches, Sized) else None
    return track(
        batches, "reading data for EVA", total, console=console, disable=not console.is_terminal
    )
