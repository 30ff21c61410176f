"""A trained adapter into a model: checked against its base, added or renewed."""

from typing import NamedTuple

from ince.errors import InputError
from ince.lora.base_identity import check_base_digest
from ince.lora.peft_model.embeddings import take_embeddings
from ince.lora.peft_model.lora_model import LoraModel
from ince.lora.peft_model.precision import in_base_precision
from ince.lora.peft_model.renewing import renew
from ince.lora.peft_model.source import Source
from ince.lora.placement.inject import check_adapter_name

__all__ = ["LoadResult", "check_not_offloaded", "load_into"]


class LoadResult(NamedTuple):
    """What PEFT's `load_adapter` returns; always empty, since missing keys are an error here."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    tuner: LoraModel,
    source: Source,
    adapter_name: str,
    is_trainable: bool,
    in_float32: bool,
) -> None:
    """Put the adapter of `source` into a model; one of this name takes its weights.

    Args:
        tuner: the adapters of the model.
        source: what was read.
        adapter_name: what to call it.
        is_trainable: whether its weights take gradients.
        in_float32: whether to keep it so, or else in the precision of the base.

    Raises:
        ConfigError, AdapterError: it does not fit. The model is as it was.
    """
    check_adapter_name(adapter_name)
    model, where = tuner.model, source.where
    check_base_digest(model, source.base_digest, where=where)
    config, tensors = take_embeddings(model, source.config, source.tensors, where)
    known = tuner.peft_config.get(adapter_name)
    if known is not None:
        renew(model, adapter_name, known, config, tensors, where)
        tuner.set_requires_grad(adapter_name, is_trainable)
    else:
        tuner.add_tensors(
            adapter_name,
            config,
            tensors,
            is_trainable=is_trainable,
            may_keep=source.is_own,
            where=where,
        )
    if not in_float32:
        in_base_precision(model, adapter_name)


def check_not_offloaded(ephemeral_gpu_offload: bool) -> None:
    """Refuse PEFT's `ephemeral_gpu_offload`.

    Raises:
        InputError: it is asked for.
    """
    if ephemeral_gpu_offload:
        raise InputError(
            "ephemeral_gpu_offload is not supported",
            do="leave it out: a layer is computed on where its weights lie",
        )
