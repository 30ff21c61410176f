"""From a resolved model to its tensors, and to transformers' model without them."""

from pathlib import Path
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


def empty_model(config: Any, folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """The language model of a config, without its weights: what is to be loaded is on meta.

    Raises:
        ModelReferenceError: transformers knows no such model.
    """
    from transformers import AutoModelForCausalLM

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
