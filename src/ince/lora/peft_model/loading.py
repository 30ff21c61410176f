"""A trained adapter into a model: checked against its base, added or renewed."""

from typing import NamedTuple, Protocol

from ince.errors import InputError
from ince.lora.base_identity import check_base_digest
from ince.lora.layers.adapted import outer_modules
from ince.lora.peft_model.embeddings import take_embeddings
from ince.lora.peft_model.lora_model import LoraModel
from ince.lora.peft_model.precision import in_base_precision
from ince.lora.peft_model.renewing import renew
from ince.lora.peft_model.source import Source
from ince.lora.placement.names import check_adapter_name

__all__ = ["LoadResult", "check_not_offloaded", "load_into"]


class Shell(Protocol):
    """What is asked of a `PeftModel`."""

    base_model: LoraModel
    training: bool

    def eval(self) -> object:
        """Evaluation mode."""
        ...


class LoadResult(NamedTuple):
    """What PEFT's `load_adapter` returns; always empty, since missing keys are an error here."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    shell: Shell,
    source: Source,
    adapter_name: str,
    is_trainable: bool,
    in_float32: bool,
) -> None:
    """Put the adapter of `source` into a model; one of this name takes its weights.

    Unless it is trainable, all is in evaluation mode afterwards.

    Args:
        shell: of the model.
        source: what was read.
        adapter_name: what to call it.
        is_trainable: whether its weights take gradients.
        in_float32: whether to keep it so, or else in the precision of the base.

    Raises:
        ConfigError, AdapterError: it does not fit. The model is as it was.
    """
    check_adapter_name(adapter_name)
    tuner, where = shell.base_model, source.where
    model = tuner.model
    check_base_digest(model, source.base_digest, where=where)
    config, tensors = take_embeddings(model, source.config, source.tensors, where)
    known = tuner.peft_config.get(adapter_name)
    if known is not None:
        renewed = renew(model, adapter_name, known, config, tensors, where)
        tuner.peft_config[adapter_name] = renewed
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
    # Asked first: going through all that is in the adapted modules takes longer than loading.
    if not is_trainable and (shell.training or _is_any_training(tuner)):
        shell.eval()


def _is_any_training(tuner: LoraModel) -> bool:
    return tuner.training or any(module.training for _, module in outer_modules(tuner.model))


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
