"""ince fine-tunes large language models with LoRA and QLoRA, and proves what came out.

    import ince

    model, tokenizer = ince.load_model("smollm2-135m-instruct", quantization=ince.NF4Config())
    model = ince.get_peft_model(model, ince.LoraConfig(r=16, target_modules="all-linear"))
    model.print_trainable_parameters()

Names are those of PEFT where PEFT has them. They are imported when first used, so that
``import ince`` is quick and has no effect.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ince.errors import InceError
    from ince.lora import LoraConfig, PeftModel, get_peft_model
    from ince.models import load_model
    from ince.quant import Linear4bit, NF4Config
    from ince.recipe import Recipe, load_recipe
    from ince.recipe.run import run_recipe

__all__ = [
    "InceError",
    "Linear4bit",
    "LoraConfig",
    "NF4Config",
    "PeftModel",
    "Recipe",
    "get_peft_model",
    "load_model",
    "load_recipe",
    "run_recipe",
]

_HOMES = {
    "InceError": "ince.errors",
    "Linear4bit": "ince.quant",
    "LoraConfig": "ince.lora",
    "NF4Config": "ince.quant",
    "PeftModel": "ince.lora",
    "Recipe": "ince.recipe",
    "get_peft_model": "ince.lora",
    "load_model": "ince.models",
    "load_recipe": "ince.recipe",
    "run_recipe": "ince.recipe.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ince' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
