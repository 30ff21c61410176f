"""Where an adapter comes from: a folder, the hub, or tensors at hand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

from torch import Tensor

from ince.errors import AdapterError, InputError
from ince.formats.adapter import read_adapter, read_base_digest
from ince.lora.config import PeftConfig, read_config
from ince.lora.hub import HubOptions, adapter_folder
from ince.lora.layers.adapted import PREFIX

__all__ = ["Reference", "Source", "read_source"]

Reference = str | PathLike[str] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """An adapter that was read.

    Attributes:
        config: of its file, or what was given in its place.
        tensors: by the names of the file.
        where: its folder, for messages.
        base_digest: of the base it was trained on, where that is known.
        is_own: whether nobody else holds the tensors.
    """

    config: PeftConfig
    tensors: dict[str, Tensor]
    where: object
    base_digest: str | None
    is_own: bool


def read_source(
    reference: Reference,
    options: HubOptions,
    config: PeftConfig | None = None,
    key_mapping: Mapping[str, str] | None = None,
) -> Source:
    """Read an adapter.

    Args:
        reference: a folder, a hub id, or tensors by PEFT's names, with or without the prefix
            ``base_model.model.``.
        options: of the hub; `subfolder` is of a folder here too.
        config: in place of the file's; needed with tensors.
        key_mapping: regular expressions and what to put in their place, for the tensors'
            names without prefix; the first that matches a name is used.

    Raises:
        InputError: there is no such folder or repository, or tensors without a config.
        ConfigError, AdapterError: not an adapter that ince reads.
        CorruptFileError: a file is cut off or garbled.
    """
    if isinstance(reference, Mapping):
        if config is None:
            raise InputError(
                "tensors alone do not say what adapter they are",
                got=f"{len(reference)} tensors",
                do="give its config too: config=LoraConfig(…)",
            )
        tensors = _with_prefix(_checked(reference))
        return Source(config, _renamed(tensors, key_mapping), "the tensors", None, False)
    folder = adapter_folder(reference, options)
    values, tensors = read_adapter(folder)
    return Source(
        read_config(values, where=folder) if config is None else config,
        _renamed(tensors, key_mapping),
        folder,
        read_base_digest(folder),
        True,
    )


def _checked(reference: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, tensor in reference.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise AdapterError(
                "an adapter's weights must be floating-point tensors", where=name, got=str(got)
            )
        if not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise AdapterError("the adapter has NaN or infinite weights", where=name)
    return cast("dict[str, Tensor]", dict(reference))


def _with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith(PREFIX) for name in tensors):
        return tensors
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def _renamed(
    tensors: dict[str, Tensor], key_mapping: Mapping[str, str] | None
) -> dict[str, Tensor]:
    if not key_mapping:
        return tensors
    patterns = [(re.compile(pattern), new) for pattern, new in key_mapping.items()]

    def rename(name: str) -> str:
        plain = name.removeprefix(PREFIX)
        for pattern, new in patterns:
            renamed, count = pattern.subn(new, plain)
            if count:
                return PREFIX + renamed
        return name

    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise AdapterError(
            "key_mapping gives two tensors the same name",
            got=f"{len(tensors)} tensors, {len(renamed)} names",
        )
    return renamed
