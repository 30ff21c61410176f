"""Which config a file holds: by its `peft_type`, one of those that ince builds."""

from collections.abc import Mapping
from typing import cast

from ince.lora.config.adalora import AdaLoraConfig
from ince.lora.config.base import PeftConfig
from ince.lora.config.lora import LoraConfig
from ince.lora.config.vera import VeraConfig

__all__ = ["AnyConfig", "read_config"]

AnyConfig = LoraConfig | VeraConfig | AdaLoraConfig


def read_config(values: Mapping[str, object], *, where: object = None) -> AnyConfig:
    """The config in an `adapter_config.json`, of whichever method.

    Args:
        values: the file's object.
        where: the file, for errors.

    Raises:
        AdapterError: the file is of a method that ince does not build.
        ConfigError: mistakes, or options that are not built.
    """
    return cast(AnyConfig, PeftConfig.from_peft_dict(values, where=where))
