"""`PeftConfig`: what the configs of all methods have, and how they are read and written.

The file is PEFT's `adapter_config.json`: an object with every option of the method, off ones
included. What stands beside it in the folder is `ince.formats.adapter`'s.

Source of the fields: Hugging Face PEFT.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import StrictBool

from ince.errors import AdapterError, ConfigError, InputError, Problem
from ince.files import read_json, write_json
from ince.formats.adapter import CONFIG_FILE
from ince.lora.config.fields import (
    AutoMapping,
    Layers,
    LayersPattern,
    Names,
    NamesOrPattern,
    TaskName,
    plain,
)
from ince.lora.config.options import IN_FILE, Clash, Options, shown
from ince.lora.hub import HubOptions, adapter_folder

__all__ = ["PeftConfig", "TaskType"]

# The release of PEFT whose file format is written.
_PEFT_FORMAT = "0.21.2"

# Keys of a file that say nothing about the adapter. `megatron_core` names a module of a
# library that only `megatron_config` brings in.
_IGNORED_IN_FILES = frozenset({"megatron_core", "peft_type", "peft_version", "runtime_config"})


class TaskType(StrEnum):
    """What the adapted model is for."""

    SEQ_CLS = "SEQ_CLS"
    """Classes of texts."""
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    """Text from text, by an encoder and a decoder."""
    CAUSAL_LM = "CAUSAL_LM"
    """Text that goes on."""
    TOKEN_CLS = "TOKEN_CLS"
    """Classes of tokens."""
    QUESTION_ANS = "QUESTION_ANS"
    """Answers as spans of a text."""
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"
    """Hidden states."""


class PeftConfig(Options):
    """What every method has. Use the class of a method; this one reads the file of any.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    peft_type: ClassVar[str]
    """The method, as files call it."""

    target_modules: NamesOrPattern | None = None
    """Names or dotted suffixes; or a regular expression for the whole name; or "all-linear",
    every linear layer but the output head. None is what is usual for the architecture."""
    layers_to_transform: Layers | None = None
    """Only these layer numbers; with `target_modules` as a list."""
    layers_pattern: LayersPattern | None = None
    """Name of the list that the layer numbers count in, such as "layers"."""
    modules_to_save: Names | None = None
    """Modules that are trained whole, on a copy that is saved with the adapter."""
    fan_in_fan_out: StrictBool = False
    """Weights of the adapted layers are stored (in, out), as those of GPT-2's Conv1D."""
    task_type: TaskName | None = None
    """What the model is for; a task with a head of its own trains that too."""
    auto_mapping: AutoMapping | None = None
    """Class and library of a base without a task, as PEFT notes them."""
    base_model_name_or_path: str | None = None
    """The base that the adapter was trained on."""
    revision: str | None = None
    """Which version of it."""
    inference_mode: StrictBool = False
    """True in files: the adapter is loaded frozen unless asked otherwise."""

    @property
    def is_prompt_learning(self) -> bool:
        """False: no method here puts tokens in front of the text."""
        return False

    def to_peft_dict(self) -> dict[str, object]:
        """The config as PEFT writes it, every key of its format included."""
        values: dict[str, object] = self.model_dump(mode="json")
        method = {"peft_type": self.peft_type, "peft_version": _PEFT_FORMAT}
        return dict(sorted({**self._not_built, **method, **values}.items()))

    def to_dict(self) -> dict[str, object]:
        """`to_peft_dict`, under the name that PEFT's programs use."""
        return self.to_peft_dict()

    @classmethod
    def from_peft_dict(cls, values: Mapping[str, object], *, where: object = None) -> Self:
        """The config in an `adapter_config.json` of PEFT.

        Options that ince does not know are passed over when they are off (null, false, zero
        or empty), so that files of a newer PEFT load; any other value is refused. What
        concerns training alone is not held against a file.

        Args:
            values: the file's object.
            where: the file, for errors.

        Raises:
            AdapterError: the file is of another method than this class.
            ConfigError: mistakes, or options that are not built.
        """
        if not isinstance(values, Mapping):
            raise ConfigError("the adapter's config cannot be used", where=where, got=shown(values))
        method = values.get("peft_type")
        methods = cls._methods()
        kind = methods.get(method) if isinstance(method, str) else None
        if kind is None:
            title = getattr(cls, "_title", "LoRA")
            relatives = ", nor of a relative that ince builds" if len(methods) > 1 else ""
            raise AdapterError(
                f"not a {title} adapter{relatives}",
                where=where,
                got=f"peft_type {shown(method)}",
                expected="peft_type " + " or ".join(repr(name) for name in methods),
                do="merge this adapter into its base with the tool it is from",
            )
        kept = {name: value for name, value in values.items() if name not in _IGNORED_IN_FILES}
        try:
            return kind.model_validate(kept, context=IN_FILE)
        except ConfigError as error:
            raise ConfigError(
                "the adapter's config cannot be used", where=where, problems=error.problems
            ) from None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read the `adapter_config.json` of a folder. `PeftConfig` reads that of any method.

        Args:
            pretrained_model_name_or_path: a folder, or a hub id.
            subfolder: of it.
            **kwargs: of `ince.lora.hub.HubOptions`, such as `revision` and `token`.

        Raises:
            AdapterError: the file is of another method than this class.
            ConfigError: mistakes, or options that are not built.
            CorruptFileError: the file is no JSON object.
            InputError: there is no such folder or repository, or no config in it.
        """
        options = HubOptions.of({**kwargs, "subfolder": subfolder})
        path = adapter_folder(pretrained_model_name_or_path, options, [CONFIG_FILE])
        if not path.is_dir():
            raise InputError("no such folder", where=path, expected=f"a folder with {CONFIG_FILE}")
        return cls.from_peft_dict(read_json(path / CONFIG_FILE), where=path / CONFIG_FILE)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `adapter_config.json` into `folder`, made when missing.

        Raises:
            DiskFullError: the disk filled; an existing file is as it was.
            InputError: the folder cannot be written to.
        """
        write_json(Path(folder) / CONFIG_FILE, self.to_peft_dict())

    @classmethod
    def _methods(cls) -> dict[str, type[Self]]:
        """The methods that this class stands for, itself first."""
        found: dict[str, type[Self]] = {}
        if hasattr(cls, "peft_type"):
            found[cls.peft_type] = cls
        for kind in cls.__subclasses__():
            found = {**kind._methods(), **found}
        return found

    @classmethod
    def _prepare(cls, values: dict[str, object]) -> Iterator[Problem]:
        values.pop("peft_version", None)
        method = plain(values.pop("peft_type", None))
        if method is not None and not (isinstance(method, str) and method == cls.peft_type):
            got = f"{shown(method)} is not this config's"
            yield Problem("peft_type", got, f"it is {cls.peft_type!r}")

    def _clashes(self) -> Iterator[Clash]:
        of_layers = self.layers_to_transform is not None
        if of_layers and isinstance(self.target_modules, str):
            yield Clash(
                ("layers_to_transform", "target_modules"),
                "needs target_modules as a list of names",
            )
        if self.layers_pattern and not of_layers:
            yield Clash(
                ("layers_pattern", "layers_to_transform"),
                "says nothing without layers_to_transform",
            )
