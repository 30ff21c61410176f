"""New weights for an adapter that is in the model, as when the best checkpoint is taken back."""

from collections.abc import Mapping

from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.allocation.files import from_file
from ince.lora.config import AdaLoraConfig, PeftConfig
from ince.lora.placement.inject import load_adapter_tensors

__all__ = ["renew"]

# Options that do not say what the weights mean: how they began, and for whom they are.
_IRRELEVANT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "init_weights",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "revision",
        "runtime_config",
        "task_type",
        "vera_dropout",
        # Which modules are meant shows in the tensors' names.
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "target_modules",
    }
)

# Of AdaLoRA, which ranks training has left so far.
_LEFT = "rank_pattern"


def renew(
    model: nn.Module,
    adapter_name: str,
    known: PeftConfig,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    where: object,
) -> PeftConfig:
    """Overwrite the weights of an adapter.

    Args:
        model: the base.
        adapter_name: of the adapter.
        known: its config.
        config: of the new weights.
        tensors: the new weights, by the names of a file.
        where: they come from.

    Returns:
        Its config from now on: of AdaLoRA, with the ranks that are left in the new weights.

    Raises:
        AdapterError: they are another adapter's: other scales or variants, or other tensors.
            Nothing was changed.
    """
    of_adalora = isinstance(known, AdaLoraConfig) and isinstance(config, AdaLoraConfig)
    irrelevant = _IRRELEVANT | {_LEFT} if of_adalora else _IRRELEVANT
    before, after = known.to_peft_dict(), config.to_peft_dict()
    differing = sorted(
        key
        for key in before.keys() | after.keys()
        if key not in irrelevant and before.get(key) != after.get(key)
    )
    if differing:
        raise AdapterError(
            f"an adapter {adapter_name!r} is there already, and this is another one",
            where=where,
            got=", ".join(f"{key}={after.get(key)!r}" for key in differing),
            expected=", ".join(f"{key}={before.get(key)!r}" for key in differing),
            do="load it under another name, or delete that one first",
        )
    if isinstance(known, AdaLoraConfig) and isinstance(config, AdaLoraConfig):
        tensors = from_file(model, adapter_name, config, tensors)
        known = known.model_copy(update={_LEFT: config.rank_pattern})
    load_adapter_tensors(model, tensors, adapter_name, where=where)
    return known
