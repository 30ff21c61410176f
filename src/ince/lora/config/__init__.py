"""What an adapter is made of: one frozen config per method, with PEFT's names and defaults.

    PeftConfig           what every method has: targets, task, base
    ├── LoraConfig       low-rank updates, and every start and variant of theirs
    ├── AdaLoraConfig    their relative whose layers share a budget of ranks
    └── VeraConfig       their relative whose matrices are frozen and shared

A config says what was asked for; that a model has such modules is seen where it is injected.
Nothing is ignored: an option that ince does not build is refused by name, unless it says
that it is off.
"""

from ince.lora.config.adalora import AdaLoraConfig
from ince.lora.config.base import PeftConfig, TaskType
from ince.lora.config.fields import ALL_LINEAR
from ince.lora.config.lora import LoraConfig
from ince.lora.config.parts import EvaConfig, LoftQConfig, LoraGAConfig, LoraRuntimeConfig
from ince.lora.config.read import AnyConfig, read_config
from ince.lora.config.vera import VeraConfig

__all__ = [
    "ALL_LINEAR",
    "AdaLoraConfig",
    "AnyConfig",
    "EvaConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraRuntimeConfig",
    "PeftConfig",
    "TaskType",
    "VeraConfig",
    "read_config",
]
