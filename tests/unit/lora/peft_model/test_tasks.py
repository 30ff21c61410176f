"""The classes of tasks: found, told apart, and understood by trainers."""

import inspect

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ince.errors import InputError
from ince.lora import (
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForQuestionAnswering,
    get_peft_model,
)
from ince.lora.peft_model.dispatch import class_for_task


def test_the_class_follows_the_task_and_else_the_base(llama, lora):
    assert type(get_peft_model(llama(), lora(task_type="QUESTION_ANS"))) is (
        PeftModelForQuestionAnswering
    )
    assert type(get_peft_model(llama(), lora())) is PeftModelForCausalLM
    assert class_for_task(PeftModel, None, nn.Linear(1, 1)) is PeftModel


def test_a_loaded_one_has_the_class_too(llama, lora, tmp_path):
    get_peft_model(llama(), lora(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert type(PeftModel.from_pretrained(llama(), tmp_path)) is PeftModelForCausalLM
    asked = PeftModelForQuestionAnswering.from_pretrained(llama(), tmp_path)
    assert type(asked) is PeftModelForQuestionAnswering


def test_the_forward_says_what_it_takes():
    names = inspect.signature(PeftModelForCausalLM.forward).parameters
    assert {"self", "input_ids", "attention_mask", "labels", "kwargs"} <= names.keys()
    assert "start_positions" in inspect.signature(PeftModelForQuestionAnswering.forward).parameters


def test_options_of_get_peft_model(llama, lora):
    model = get_peft_model(llama(), lora(), "x", revision="v1", low_cpu_mem_usage=True)
    assert list(model.peft_config) == ["x"]
    assert model.peft_config["x"].revision == "v1"
    with pytest.raises(InputError, match="mixed"):
        get_peft_model(llama(), lora(), mixed=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trained_by_the_trainer_of_transformers(llama, tmp_path, checkpointing):
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "other": 3}] * 8
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        learning_rate=0.1,
        report_to=[],
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=1,
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        activation_checkpointing=checkpointing,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert "eval_loss" in trainer.evaluate()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}


def test_compiled_as_a_whole_and_switched(model, logits):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for names in ("default", ["b", "c"]):
        model.set_adapter(names)
        torch.testing.assert_close(logits(compiled), logits(model))
    with model.disable_adapter():
        torch.testing.assert_close(logits(compiled), logits(model))
