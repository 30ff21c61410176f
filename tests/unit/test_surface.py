"""The public surface, frozen: a name that goes or comes is a decision, not an accident."""

import pytest

import ince


def test_the_names_of_the_library():
    assert ince.__all__ == [
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


@pytest.mark.parametrize("name", ince.__all__)
def test_each_is_there(name):
    assert getattr(ince, name).__name__ == name
    assert name in dir(ince)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'lora'"):
        ince.__getattr__("lora")
