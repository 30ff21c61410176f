"""Config, tokenizer and an empty model from the metadata of a GGUF file, by transformers.

transformers trusts a file's metadata: a number of layers is built, an array is taken apart
into an object for each element. So what is large in the file is compared with what a model can
have before transformers sees it.
"""

from typing import TYPE_CHECKING, Any

import torch

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.gguf import GGUFFile
from ince.models.gguf_config import complete_config
from ince.models.quiet import quiet_transformers, without_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["cannot_read", "empty_model", "read_description"]

BAR = "de-quantizing GGUF"  # in the description of a bar that transformers cannot turn off

# The largest vocabularies have a quarter of a million tokens and twice as many merges.
_MAX_ARRAY = 1 << 22
_MAX_SIZE = 1 << 27
_MAX_EXPERTS = 1 << 14


def read_description(file: GGUFFile) -> tuple[Any, Any]:
    """Config and tokenizer of a GGUF file.

    Raises:
        CorruptFileError: the metadata speaks of more than a model can have.
        ModelReferenceError: transformers cannot read it.
    """
    _check_sizes(file)
    try:
        from transformers import AutoConfig, AutoTokenizer

        folder, name = str(file.path.parent), file.path.name
        with quiet_transformers(), without_line(BAR):
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            config = AutoConfig.from_pretrained(folder, gguf_file=name)
    except MemoryError:
        raise
    except Exception as error:  # the reader fails in many ways on a damaged or unknown file
        raise cannot_read(file, error) from error
    complete_config(file, config)
    return config, tokenizer


def empty_model(file: GGUFFile, config: Any) -> "PreTrainedModel":
    """The model of a config on the meta device, without weights.

    Raises:
        ModelReferenceError: the config is not that of a language model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, trust_remote_code=False
            )
    except MemoryError:
        raise
    except Exception as error:
        raise cannot_read(file, error) from error


def cannot_read(file: GGUFFile, error: Exception) -> ModelReferenceError:
    """What transformers raised, as an error of ince."""
    if isinstance(error, ImportError):
        return ModelReferenceError(
            "reading GGUF needs two more packages",
            where=file.path,
            got=str(error),
            do="pip install gguf accelerate",
        )
    return ModelReferenceError(
        "transformers cannot read this GGUF file",
        where=file.path,
        got=f"{type(error).__name__}: {error}",
        do="the file may be damaged, or its architecture not among those that transformers "
        "converts; use the safetensors form of the model",
    )


def _check_sizes(file: GGUFFile) -> None:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptFileError(
            "the file does not say what kind of model it holds",
            where=file.path,
            got=architecture,
            expected="general.architecture",
            do="the file is damaged, or holds no language model",
        )
    limits = {
        f"{architecture}.block_count": len(file.entries),  # every layer has tensors
        f"{architecture}.expert_count": _MAX_EXPERTS,
    }
    num_elements = 0
    for key, value in file.metadata.items():
        if isinstance(value, str | float):
            continue
        if not isinstance(value, int):
            num_elements += len(value)
        elif key.startswith(f"{architecture}.") and value > (limit := limits.get(key, _MAX_SIZE)):
            raise CorruptFileError(
                f"the file's description is not that of a model: {key}",
                where=file.path,
                got=value,
                expected=f"at most {limit}",
                do="the file is damaged; get it again",
            )
    if num_elements > _MAX_ARRAY:
        raise CorruptFileError(
            "the file's description is not that of a model: its lists are too long",
            where=file.path,
            got=f"{num_elements} elements",
            expected=f"at most {_MAX_ARRAY}",
            do="the file is damaged; get it again",
        )
