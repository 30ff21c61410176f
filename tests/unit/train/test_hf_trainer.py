"""What `ince.Trainer` refuses at the start, and what it says when a checkpoint is none."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import ince
from ince.errors import AdapterError, InputError
from ince.quant import quantize_model

ROWS = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4


def base():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=32, **sizes)
    )


def adapted(model=None, **changes):
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    return ince.get_peft_model(model or base(), ince.LoraConfig(**(settings | changes)))


@pytest.fixture
def trainer(tmp_path):
    def make(model, **changes):
        settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
        arguments = TrainingArguments(output_dir=str(tmp_path), **(settings | changes))
        return ince.Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS)

    return make


def test_the_model_is_the_one_that_was_given(trainer):
    model = adapted()
    made = trainer(model)
    assert made.model is model
    assert made.model_wrapped is model
    assert made.callback_handler.model is model
    assert not model.get_base_model()._hf_peft_config_loaded


def test_a_model_without_adapters_is_refused(trainer):
    with pytest.raises(InputError, match="for models with adapters") as error:
        trainer(base())
    assert "LlamaForCausalLM" in str(error.value)
    with pytest.raises(InputError, match="for models with adapters") as error:
        ince.Trainer(model_init=adapted)
    assert "model_init" in str(error.value)


def test_weights_that_no_checkpoint_would_hold_are_refused(trainer):
    model = adapted()
    model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    with pytest.raises(InputError, match="checkpoints hold adapters alone") as error:
        trainer(model)
    assert "norm.weight" in str(error.value)
    trainer(adapted(modules_to_save=["norm"]))


def test_nothing_to_train_is_refused(trainer):
    model = adapted()
    model.set_requires_grad("default", False)
    with pytest.raises(AdapterError, match="nothing to train"):
        trainer(model)


def test_a_start_that_files_cannot_tell_does_not_come_back(trainer, tmp_path):
    packed = base()
    quantize_model(packed, ince.NF4Config(blocksize=32))
    model = adapted(packed, init_lora_weights="pissa")
    at_the_end = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
    }
    with pytest.raises(AdapterError, match="cannot be taken back"):
        trainer(model, **at_the_end)
    trainer(model, save_steps=1).train()
    with pytest.raises(AdapterError, match="cannot be taken back"):
        trainer(model).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_folder_without_an_adapter_is_no_checkpoint(trainer, tmp_path):
    empty = tmp_path / "checkpoint-7"
    empty.mkdir()
    with pytest.raises(InputError) as error:
        trainer(adapted())._load_from_checkpoint(str(empty))
    assert "checkpoint-7" in str(error.value)


def test_another_adapters_checkpoint_is_refused_and_changes_nothing(trainer, tmp_path):
    trainer(adapted(r=4), save_steps=1).train()
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match="this is another one"):
        trainer(model).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
