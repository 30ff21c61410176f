"""Adapters in a model without a shell: put in, read out, set, under PEFT's names."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ince.errors import ConfigError, InputError
from ince.lora.allocation.files import from_file
from ince.lora.config import AdaLoraConfig, PeftConfig
from ince.lora.hub import HubOptions
from ince.lora.layers.adapted import PREFIX, plain_model
from ince.lora.peft_model.embeddings import embeddings_to_save
from ince.lora.peft_model.loading import LoadResult
from ince.lora.peft_model.saving import file_of, tensors_of_state
from ince.lora.peft_model.shell import PeftModel
from ince.lora.peft_model.source import read_source
from ince.lora.placement.inject import adapter_tensors, inject, load_adapter_tensors

__all__ = [
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "load_peft_weights",
    "set_peft_model_state_dict",
]

_Model = TypeVar("_Model", bound=nn.Module)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: _Model,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,  # noqa: ARG001
    state_dict: Mapping[str, Tensor] | None = None,
) -> _Model:
    """Freeze `model`, put a fresh adapter into its layers, and return it.

    Args:
        peft_config: of the adapter.
        model: changed in place.
        adapter_name: of the adapter.
        low_cpu_mem_usage: without effect.
        state_dict: tensors of an adapter, whose names say which layers are meant instead of
            the config. Their values are not used.

    Raises:
        ConfigError: the config, or a name in `state_dict`, does not fit the model.
        AdapterError: the adapter's name is taken or cannot be used.
    """
    if state_dict is not None:
        peft_config = peft_config.model_copy(
            update={
                "target_modules": _layers_in(state_dict),
                "exclude_modules": None,
                "layers_to_transform": None,
                "layers_pattern": None,
            }
        )
    inject(model, peft_config, adapter_name)
    return model


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """An adapter's tensors by the names of its file, detached and not copied.

    Args:
        model: a `PeftModel`, or a model that adapters were injected into, whose names come
            without the prefix ``base_model.model.``.
        state_dict: of the model, gathered from several devices, in place of its weights.
        adapter_name: of the adapter.
        unwrap_compiled: whether `model` may be a compiled one.
        save_embedding_layers: see `PeftModel.save_pretrained`; of a `PeftModel`.

    Raises:
        AdapterError: `state_dict` does not hold the whole adapter.
    """
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    base = plain_model(model)
    if isinstance(model, PeftModel):
        config = model.peft_config[adapter_name]
        _, tensors = file_of(base, adapter_name, config, state_dict)
        return tensors | embeddings_to_save(base, config, save_embedding_layers)
    if state_dict is None:
        tensors = adapter_tensors(base, adapter_name)
    else:
        tensors = tensors_of_state(base, adapter_name, state_dict)
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,  # noqa: ARG001
) -> LoadResult:
    """Overwrite the weights of an adapter that is in the model.

    Args:
        model: a `PeftModel`, or a model that adapters were injected into.
        peft_model_state_dict: by the names of a file, with or without prefix.
        adapter_name: of the adapter.
        ignore_mismatched_sizes: only False.
        low_cpu_mem_usage: without effect.

    Raises:
        InputError: mismatches are to be ignored.
        AdapterError: no such adapter, or missing, surplus or misshaped tensors, which are
            named; nothing was changed.
    """
    if ignore_mismatched_sizes:
        raise InputError(
            "tensors of another shape are not passed over",
            got="ignore_mismatched_sizes=True",
            do="leave it out, and take them out of the state dict",
        )
    tensors = dict(peft_model_state_dict)
    if not any(name.startswith(PREFIX) for name in tensors):
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()}
    base = plain_model(model)
    config = model.peft_config.get(adapter_name) if isinstance(model, PeftModel) else None
    if isinstance(config, AdaLoraConfig):
        tensors = from_file(base, adapter_name, config, tensors)
    load_adapter_tensors(base, tensors, adapter_name)
    return LoadResult([], [])


def load_peft_weights(
    model_id: str | PathLike[str],
    device: str | torch.device | None = None,
    key_mapping: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """The tensors of an adapter, by the names of its file.

    Args:
        model_id: a folder, or a hub id.
        device: where to put them; by default the CPU.
        key_mapping: regular expressions and replacements for their names.
        **kwargs: of `HubOptions`, such as `subfolder` and `revision`.

    Raises:
        InputError, AdapterError, CorruptFileError: see `PeftModel.load_adapter`.
    """
    source = read_source(model_id, HubOptions.of(kwargs), key_mapping=key_mapping)
    return {name: tensor.to(device or "cpu") for name, tensor in source.tensors.items()}


def _layers_in(state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = dict.fromkeys(
        key.removeprefix(PREFIX).partition(".lora_")[0] for key in state_dict if ".lora_" in key
    )
    if not names:
        raise ConfigError(
            "the state dict names no adapted layer",
            got=", ".join(list(state_dict)[:3]) or "no tensors",
            expected="names such as layers.0.q_proj.lora_A.weight",
        )
    return tuple(names)
