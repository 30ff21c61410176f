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
    from ince.lora import (
        AdaLoraConfig,
        AdapterSlots,
        AutoPeftModel,
        AutoPeftModelForCausalLM,
        AutoPeftModelForFeatureExtraction,
        AutoPeftModelForQuestionAnswering,
        AutoPeftModelForSeq2SeqLM,
        AutoPeftModelForSequenceClassification,
        AutoPeftModelForTokenClassification,
        EvaConfig,
        LoftQConfig,
        LoraConfig,
        LoraGAConfig,
        LoraModel,
        LoraRuntimeConfig,
        LostUpdateWarning,
        PackedAdapter,
        PeftConfig,
        PeftModel,
        PeftModelForCausalLM,
        PeftModelForFeatureExtraction,
        PeftModelForQuestionAnswering,
        PeftModelForSeq2SeqLM,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
        PeftType,
        Survival,
        TaskType,
        VeraConfig,
        cast_mixed_precision_params,
        get_eva_state_dict,
        get_layer_status,
        get_model_status,
        get_peft_model,
        get_peft_model_state_dict,
        hotswap_adapter,
        hotswap_adapter_from_state_dict,
        initialize_lora_eva_weights,
        inject_adapter_in_model,
        load_peft_weights,
        merge_into_4bit,
        prepare_model_for_compiled_hotswap,
        prepare_model_for_kbit_training,
        preprocess_loraga,
        replace_lora_weights_loftq,
        set_peft_model_state_dict,
    )
    from ince.models import load_model
    from ince.optim import create_lorafa_optimizer, create_loraplus_optimizer
    from ince.quant import Linear4bit, NF4Config
    from ince.recipe import Recipe, load_recipe
    from ince.recipe.run import run_recipe
    from ince.train.hf_trainer import AdapterTrainerMixin, Trainer

__all__ = [
    "AdaLoraConfig",
    "AdapterSlots",
    "AdapterTrainerMixin",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "EvaConfig",
    "InceError",
    "Linear4bit",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraModel",
    "LoraRuntimeConfig",
    "LostUpdateWarning",
    "NF4Config",
    "PackedAdapter",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "Recipe",
    "Survival",
    "TaskType",
    "Trainer",
    "VeraConfig",
    "cast_mixed_precision_params",
    "create_lorafa_optimizer",
    "create_loraplus_optimizer",
    "get_eva_state_dict",
    "get_layer_status",
    "get_model_status",
    "get_peft_model",
    "get_peft_model_state_dict",
    "hotswap_adapter",
    "hotswap_adapter_from_state_dict",
    "initialize_lora_eva_weights",
    "inject_adapter_in_model",
    "load_model",
    "load_peft_weights",
    "load_recipe",
    "merge_into_4bit",
    "prepare_model_for_compiled_hotswap",
    "prepare_model_for_kbit_training",
    "preprocess_loraga",
    "replace_lora_weights_loftq",
    "run_recipe",
    "set_peft_model_state_dict",
]

_HOMES = {
    "AdaLoraConfig": "ince.lora",
    "AdapterSlots": "ince.lora",
    "AdapterTrainerMixin": "ince.train.hf_trainer",
    "AutoPeftModel": "ince.lora",
    "AutoPeftModelForCausalLM": "ince.lora",
    "AutoPeftModelForFeatureExtraction": "ince.lora",
    "AutoPeftModelForQuestionAnswering": "ince.lora",
    "AutoPeftModelForSeq2SeqLM": "ince.lora",
    "AutoPeftModelForSequenceClassification": "ince.lora",
    "AutoPeftModelForTokenClassification": "ince.lora",
    "EvaConfig": "ince.lora",
    "InceError": "ince.errors",
    "Linear4bit": "ince.quant",
    "LoftQConfig": "ince.lora",
    "LoraConfig": "ince.lora",
    "LoraGAConfig": "ince.lora",
    "LoraModel": "ince.lora",
    "LoraRuntimeConfig": "ince.lora",
    "LostUpdateWarning": "ince.lora",
    "NF4Config": "ince.quant",
    "PackedAdapter": "ince.lora",
    "PeftConfig": "ince.lora",
    "PeftModel": "ince.lora",
    "PeftModelForCausalLM": "ince.lora",
    "PeftModelForFeatureExtraction": "ince.lora",
    "PeftModelForQuestionAnswering": "ince.lora",
    "PeftModelForSeq2SeqLM": "ince.lora",
    "PeftModelForSequenceClassification": "ince.lora",
    "PeftModelForTokenClassification": "ince.lora",
    "PeftType": "ince.lora",
    "Recipe": "ince.recipe",
    "Survival": "ince.lora",
    "TaskType": "ince.lora",
    "Trainer": "ince.train.hf_trainer",
    "VeraConfig": "ince.lora",
    "cast_mixed_precision_params": "ince.lora",
    "create_lorafa_optimizer": "ince.optim",
    "create_loraplus_optimizer": "ince.optim",
    "get_eva_state_dict": "ince.lora",
    "get_layer_status": "ince.lora",
    "get_model_status": "ince.lora",
    "get_peft_model": "ince.lora",
    "get_peft_model_state_dict": "ince.lora",
    "hotswap_adapter": "ince.lora",
    "hotswap_adapter_from_state_dict": "ince.lora",
    "initialize_lora_eva_weights": "ince.lora",
    "inject_adapter_in_model": "ince.lora",
    "load_model": "ince.models",
    "load_peft_weights": "ince.lora",
    "load_recipe": "ince.recipe",
    "merge_into_4bit": "ince.lora",
    "prepare_model_for_compiled_hotswap": "ince.lora",
    "prepare_model_for_kbit_training": "ince.lora",
    "preprocess_loraga": "ince.lora",
    "replace_lora_weights_loftq": "ince.lora",
    "run_recipe": "ince.recipe.run",
    "set_peft_model_state_dict": "ince.lora",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ince' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
