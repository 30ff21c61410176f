"""Base and adapter from the adapter's folder alone."""

import json

import pytest
import torch

from ince.errors import AdapterError, InputError
from ince.lora import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftModelForCausalLM,
    get_peft_model,
)


@pytest.fixture
def saved(llama, lora, tmp_path):
    """A function that saves base and adapter, and gives the model."""

    def save(**values):
        llama().save_pretrained(tmp_path / "base")
        base = type(llama()).from_pretrained(tmp_path / "base").eval()
        model = get_peft_model(base, lora(**values))
        model.save_pretrained(tmp_path / "adapter")
        return model

    return save


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_base_is_the_one_that_the_adapter_names(saved, tmp_path, logits):
    model = saved(task_type="CAUSAL_LM")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is PeftModelForCausalLM
    assert torch.equal(logits(loaded), logits(model))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trained = AutoPeftModelForCausalLM.from_pretrained(
        str(tmp_path / "adapter"), "x", is_trainable=True, dtype=torch.bfloat16
    )
    assert trained.active_adapter == "x"
    assert trained.dtype == torch.bfloat16


def test_without_a_task_the_class_of_the_base_is_named(saved, tmp_path, logits):
    model = saved()
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    "mapping",
    [
        {"base_model_class": "Popen", "parent_library": "subprocess"},
        {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers_evil"},
        {"base_model_class": "__name__", "parent_library": "transformers"},
        {"base_model_class": "utils.logging", "parent_library": "transformers"},
        {},
        None,
    ],
)
def test_no_other_library_is_imported(saved, tmp_path, mapping):
    saved()
    change_config(tmp_path / "adapter", auto_mapping=mapping)
    with pytest.raises(InputError, match="does not name a class of transformers"):
        AutoPeftModel.from_pretrained(tmp_path / "adapter")


def test_an_adapter_for_another_task_or_without_a_base(saved, tmp_path):
    saved(task_type="CAUSAL_LM")
    with pytest.raises(AdapterError, match="for another task"):
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    change_config(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(InputError, match="which base"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="from_pretrained"):
        AutoPeftModelForCausalLM()


def test_a_larger_tokenizer_beside_the_adapter_enlarges_the_embeddings(
    saved, tmp_path, small_tokenizer
):
    saved(task_type="CAUSAL_LM")
    small_tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert loaded.get_input_embeddings().weight.shape[0] == len(small_tokenizer)
