"""`AutoPeftModelForCausalLM` and its like: base and adapter from the adapter's folder alone.

The base is the one that the adapter's config names, loaded by transformers.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ince.errors import AdapterError, InputError
from ince.files import read_json
from ince.formats.adapter import CONFIG_FILE
from ince.lora.config import PeftConfig, read_config
from ince.lora.hub import HubOptions, adapter_folder
from ince.lora.peft_model.shell import PeftModel
from ince.lora.peft_model.tasks import (
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)

__all__ = [
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
]

_OF_ADAPTER = ("autocast_adapter_dtype", "ephemeral_gpu_offload", "key_mapping")
_OF_HUB = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only")
_OF_BOTH = ("token", "cache_dir", "force_download", "local_files_only")


class AutoPeftModel:
    """For an adapter whose config names the base's class, and no task."""

    _auto_class: ClassVar[str | None] = None
    _shell: ClassVar[type[PeftModel]] = PeftModel

    def __init__(self) -> None:
        raise InputError(
            f"{type(self).__name__} is not made like this",
            do=f"call {type(self).__name__}.from_pretrained(…)",
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Load the base that an adapter names, and the adapter on it.

        A tokenizer beside the adapter with more tokens than the base enlarges its embeddings.

        Args:
            pretrained_model_name_or_path: folder or hub id of the adapter.
            adapter_name: what to call it.
            is_trainable: whether its weights take gradients.
            config: in place of the one in the file.
            revision: of the adapter, on the hub.
            **kwargs: those of `PeftModel.from_pretrained`; others go to the base's
                ``from_pretrained`` of transformers, such as `dtype` and `device_map`.

        Raises:
            InputError: no such folder or repository, or the config names no base.
            AdapterError: the adapter is for another task.
            ConfigError, CorruptFileError: see `PeftModel.from_pretrained`.
        """
        of_hub = {name: kwargs.pop(name) for name in _OF_HUB if name in kwargs}
        of_adapter = {name: kwargs.pop(name) for name in _OF_ADAPTER if name in kwargs}
        options = HubOptions.of({**of_hub, "revision": revision})
        folder = adapter_folder(pretrained_model_name_or_path, options)
        if config is None:
            config = read_config(read_json(folder / CONFIG_FILE), where=folder)
        if config.base_model_name_or_path is None:
            raise InputError(
                "the adapter does not say which base it is for",
                where=folder / CONFIG_FILE,
                do="load the base yourself, then call PeftModel.from_pretrained(base, adapter)",
            )
        load = cls._class_of_base(config, folder)
        shared = {name: of_hub[name] for name in _OF_BOTH if name in of_hub}
        base = load.from_pretrained(
            config.base_model_name_or_path, revision=config.revision, **shared, **kwargs
        )
        _enlarge(base, folder)
        return cls._shell.from_pretrained(
            base, folder, adapter_name, is_trainable, config, **of_adapter
        )

    @classmethod
    def _class_of_base(cls, config: PeftConfig, folder: Path) -> Any:
        if cls._auto_class is not None:
            if config.task_type not in (None, cls._shell.task):
                raise AdapterError(
                    "the adapter is for another task",
                    where=folder / CONFIG_FILE,
                    got=f"task_type {config.task_type!r}",
                    expected=f"one of {cls.__name__}",
                )
            return getattr(importlib.import_module("transformers"), cls._auto_class)
        return _named_class(config.auto_mapping or {}, folder)


def _named_class(mapping: Mapping[str, object], folder: Path) -> Any:
    """The class in transformers that `auto_mapping` names. No other library is imported."""
    library, name = str(mapping.get("parent_library")), str(mapping.get("base_model_class"))
    if library.partition(".")[0] == "transformers" and name.isidentifier():
        found = getattr(importlib.import_module("transformers"), name, None)
        if isinstance(found, type) and callable(getattr(found, "from_pretrained", None)):
            return found
    raise InputError(
        "the adapter's config does not name a class of transformers to load the base with",
        where=folder / CONFIG_FILE,
        got=f"auto_mapping {dict(mapping)!r}",
        do="use the class for its task, such as AutoPeftModelForCausalLM",
    )


def _enlarge(base: Any, folder: Path) -> None:
    if not (folder / "tokenizer_config.json").is_file():
        return
    from transformers import AutoTokenizer

    num_tokens = len(AutoTokenizer.from_pretrained(folder))
    if num_tokens > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(num_tokens)


class AutoPeftModelForCausalLM(AutoPeftModel):
    """For text that goes on."""

    _auto_class = "AutoModelForCausalLM"
    _shell = PeftModelForCausalLM


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """For text from text."""

    _auto_class = "AutoModelForSeq2SeqLM"
    _shell = PeftModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """For classes of texts."""

    _auto_class = "AutoModelForSequenceClassification"
    _shell = PeftModelForSequenceClassification


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """For classes of tokens."""

    _auto_class = "AutoModelForTokenClassification"
    _shell = PeftModelForTokenClassification


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """For answers as spans."""

    _auto_class = "AutoModelForQuestionAnswering"
    _shell = PeftModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """For hidden states."""

    _auto_class = "AutoModel"
    _shell = PeftModelForFeatureExtraction
