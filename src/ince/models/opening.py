"""From a resolved model to its tensors, and to transformers' model without them."""

from typing import TYPE_CHECKING, Any

import torch

from ince.errors import ModelReferenceError
from ince.models.build import EmptyOnMeta
from ince.models.gguf import open_gguf
from ince.models.reference import ResolvedModel
from ince.models.source import SafetensorsSource, TensorSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["empty_model", "open_source"]


def open_source(resolved: ResolvedModel) -> TensorSource:
    """The tensors of a model: those of its folder, or of the GGUF file that it is.

    Raises:
        ModelReferenceError: there are none that can be read.
        CorruptFileError: a file is damaged.
    """
    if resolved.source is not None and not any(resolved.folder.glob("*.safetensors")):
        return open_gguf(resolved.source)
    return SafetensorsSource(resolved.folder)


def empty_model(config: Any, source: TensorSource, dtype: torch.dtype) -> "PreTrainedModel":
    """The language model of a config, without its weights: what is to be loaded is on meta.

    Raises:
        ModelReferenceError: transformers knows no such model, or the config is of a size that
            the stored tensors cannot be of.
    """
    from transformers import AutoModelForCausalLM

    folder = source.folder
    _check_sizes(config, source)
    try:
        with EmptyOnMeta():
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise ModelReferenceError(
            "transformers cannot build a language model from this config",
            where=folder / "config.json",
            got=f"{type(error).__name__}: {error}",
            expected="a causal language model that the installed transformers knows",
        ) from error


def _check_sizes(config: Any, source: TensorSource) -> None:
    """Refuse a config that asks for more than is stored, before anything is made of it.

    Weights are on meta, but tables of positions are not, and each layer is a module.
    """
    num_bytes = sum(entry.num_bytes for entry in source.entries.values())
    limits = {"num_hidden_layers": len(source.entries)}
    # No format takes less than a bit for a weight.
    limits |= dict.fromkeys(("hidden_size", "vocab_size", "head_dim"), 8 * num_bytes)
    for name, limit in limits.items():
        value: object = getattr(config, name, None)
        if isinstance(value, int) and value > limit:
            raise ModelReferenceError(
                "the weights do not fit the config: they are far too few",
                where=source.folder / "config.json",
                got=f"{name} {value}",
                expected=f"at most {limit}, for {len(source.entries)} tensors of {num_bytes} bytes",
                do="config.json and the weights belong to different models; get both again",
            )
