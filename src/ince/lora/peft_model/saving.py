"""Adapters into folders: "default" into the one given, others into one of their name.

An adapter with a start that is taken off the base (PiSSA, OLoRA, LoRA-GA) can be written in
plain form, for the unchanged base and without its start:

    s · (B A - B₀ A₀) = s · [B, -B₀] [A; A₀],   twice the rank at the same scale
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, InputError
from ince.formats.adapter import write_adapter
from ince.lora.allocation.files import to_file
from ince.lora.base_identity import base_digest
from ince.lora.config import AdaLoraConfig, LoraConfig, PeftConfig
from ince.lora.hub import HubOptions
from ince.lora.layers.adapted import PREFIX, adapted_modules
from ince.lora.peft_model.embeddings import embeddings_to_save
from ince.lora.peft_model.joining import base_name
from ince.lora.peft_model.source import read_source
from ince.lora.placement.inject import adapter_tensors, lora_layers
from ince.quant import Linear4bit

__all__ = ["file_of", "has_lost_start", "save_adapters", "tensors_of_state"]

_Config = TypeVar("_Config", bound=PeftConfig)

_PLAIN: Mapping[str, object] = MappingProxyType(
    {
        "init_lora_weights": True,
        "eva_config": None,
        "lora_ga_config": None,
        "loftq_config": None,
    }
)


def save_adapters(
    model: nn.Module,
    configs: Mapping[str, PeftConfig],
    directory: Path,
    adapter_names: Sequence[str],
    *,
    save_embedding_layers: bool | str = "auto",
    initial: Path | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write adapters in PEFT's format.

    Args:
        model: the base, its layers adapted.
        configs: of its adapters.
        directory: made when missing.
        adapter_names: which to write.
        save_embedding_layers: see `embeddings_to_save`.
        initial: folder of the untrained adapter; write in plain form.
        state_dict: of the whole `PeftModel`, gathered from elsewhere, in place of its weights.

    Raises:
        InputError: `directory` is a file.
        AdapterError: weights that are not finite, or that cannot be put into plain form.
        DiskFullError: nothing half-written is left.
    """
    if directory.is_file():
        raise InputError("there is a file where a folder is to be written", where=directory)
    # All are gathered before the first is written: a mistake in one leaves no half of them.
    prepared: list[tuple[Path, PeftConfig, dict[str, Tensor]]] = []
    for name in adapter_names:
        config, tensors = file_of(model, name, _named(configs[name], model), state_dict)
        if initial is not None or has_lost_start(model, name, config):
            config, tensors = _plain(model, name, config, tensors, initial)
        tensors |= embeddings_to_save(model, config, save_embedding_layers)
        folder = directory if name == "default" else directory / name
        prepared.append((folder, config.model_copy(update={"inference_mode": True}), tensors))
    for folder, config, tensors in prepared:
        write_adapter(folder, config.to_peft_dict(), tensors, base_digest=base_digest(model))


def file_of(
    model: nn.Module,
    adapter_name: str,
    config: PeftConfig,
    state_dict: Mapping[str, Tensor] | None = None,
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """An adapter as its file has it: of AdaLoRA, without the ranks that were given up.

    Args:
        model: the base, its layers adapted.
        adapter_name: of the adapter.
        config: of the adapter.
        state_dict: see `tensors_of_state`; else the model's own weights.

    Raises:
        AdapterError: `state_dict` does not hold the whole adapter.
    """
    if state_dict is None:
        tensors = adapter_tensors(model, adapter_name)
    else:
        tensors = tensors_of_state(model, adapter_name, state_dict)
    if isinstance(config, AdaLoraConfig):
        return to_file(model, adapter_name, config, tensors)
    return config, tensors


def tensors_of_state(
    model: nn.Module, adapter_name: str, state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An adapter's tensors by the names of its file, out of a state dict of the whole model.

    Args:
        model: the base.
        adapter_name: of the adapter.
        state_dict: of the base or of its `PeftModel`.

    Raises:
        AdapterError: one is not in it.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in state_dict) else ""
    where = {id(parameter): prefix + name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for module_name, adapted in adapted_modules(model):
        for key, tensor in adapted.keyed_tensors(module_name, adapter_name).items():
            if not key.startswith(PREFIX):
                tensors[key] = tensor  # what layers share is no module's
                continue
            name = where.get(id(tensor), "")
            if name not in state_dict:
                raise AdapterError(
                    "the state dict does not hold the whole adapter", where=adapter_name, got=key
                )
            tensors[key] = state_dict[name]
    return tensors


def _named(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """`config` with what PEFT notes about the base when it saves."""
    changes: dict[str, object] = {}
    if config.base_model_name_or_path is None:
        changes["base_model_name_or_path"] = base_name(model)
    if config.task_type is None:
        kind = type(model)
        changes["auto_mapping"] = {
            "base_model_class": kind.__name__,
            "parent_library": kind.__module__,
        }
    return config.model_copy(update=changes)


# --------------------------------------------------------------------------------- plain form


def has_lost_start(model: nn.Module, adapter_name: str, config: PeftConfig) -> bool:
    """Whether a file could not tell the start.

    It was drawn at random, came from data, or from a weight as 4 bits have it, which the same
    base in another precision does not tell.
    """
    start = config.init_lora_weights if isinstance(config, LoraConfig) else None
    if not isinstance(start, str):
        return False
    return (
        start == "lora_ga"
        or start.startswith("pissa_niter_")
        or any(
            isinstance(layer.base_layer, Linear4bit)
            for _, layer in lora_layers(model)
            if adapter_name in layer.specs and layer.start_of(adapter_name) is not None
        )
    )


def _plain(
    model: nn.Module,
    name: str,
    config: PeftConfig,
    tensors: dict[str, Tensor],
    initial: Path | None,
) -> tuple[LoraConfig, dict[str, Tensor]]:
    if not isinstance(config, LoraConfig):
        raise AdapterError(
            "only a LoRA adapter has a plain form",
            where=name,
            got=config.peft_type,
            do="save it without path_initial_model_for_weight_conversion",
        )
    starts = _starts(model, name)
    if starts:  # a layer without one starts at nothing
        starts = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()} | starts
    elif initial is not None:
        starts = read_source(initial, HubOptions()).tensors
    else:  # nothing is taken off the base
        return config.model_copy(update=_PLAIN), tensors
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        is_a = ".lora_A." in key or key.endswith(".lora_embedding_A")
        is_b = ".lora_B." in key or key.endswith(".lora_embedding_B")
        if not (is_a or is_b):
            plain[key] = tensor
            continue
        start = starts.get(key)
        if start is None or start.shape != tensor.shape:
            raise AdapterError(
                "the start of the adapter does not have its tensors",
                where=initial,
                got=f"{key}: {None if start is None else tuple(start.shape)}",
                expected=tuple(tensor.shape),
            )
        start = start.to(tensor.device, tensor.dtype)
        plain[key] = torch.cat([tensor, start if is_a else -start], dim=0 if is_a else 1)
    return _doubled(config), plain


def _starts(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """A₀ and B₀ by the names of A and B in a file, of the layers that have them."""
    found: dict[str, Tensor] = {}
    for name, layer in lora_layers(model):
        start = layer.start_of(adapter_name) if adapter_name in layer.specs else None
        if start is not None:
            live = layer.factor_parameters(adapter_name)
            for suffix, factor, parameter in zip(
                layer.geometry.factor_names, start, live, strict=True
            ):
                found[f"{PREFIX}{name}.{suffix}"] = factor.view(parameter.shape)
    return found


def _doubled(config: LoraConfig) -> LoraConfig:
    """Twice the rank; alpha so that the scale stays."""
    factor = math.sqrt(2) if config.use_rslora else 2
    return config.model_copy(
        update={
            "r": 2 * config.r,
            "lora_alpha": factor * config.lora_alpha,
            "rank_pattern": {key: 2 * r for key, r in config.rank_pattern.items()},
            "alpha_pattern": {key: factor * a for key, a in config.alpha_pattern.items()},
            **_PLAIN,
        }
    )
