"""What every config has: tasks, files, and PEFT's small questions."""

import json

import peft
import pytest

from ince.errors import ConfigError, InputError
from ince.lora.config import AdaLoraConfig, LoraConfig, TaskType, VeraConfig

KINDS = [LoraConfig, VeraConfig, lambda **values: AdaLoraConfig(total_step=9, **values)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TaskType)
def test_tasks_are_words_or_members_of_an_enumeration(kind, task):
    config = kind(task_type=task)
    assert config.task_type == task == task.value
    assert config == kind(task_type=task.value)
    assert config == kind(task_type=peft.TaskType(task.value))
    assert config.to_peft_dict()["task_type"] == task.value


def test_the_tasks_are_pefts():
    assert {task.value for task in TaskType} == {task.value for task in peft.TaskType}


def test_the_method_may_be_said_but_not_changed():
    assert LoraConfig(peft_type="LORA", peft_version="0.1") == LoraConfig()
    assert LoraConfig(peft_type=peft.PeftType.LORA) == LoraConfig()
    assert VeraConfig(peft_type=None).peft_type == "VERA"
    with pytest.raises(ConfigError, match="peft_type: 'ADALORA' is not this config's"):
        LoraConfig(peft_type=peft.PeftType.ADALORA)


def test_a_file_may_be_spread_into_a_constructor():
    config = LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="loftq")
    assert LoraConfig(**config.to_peft_dict()) == config


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_round_trips(kind, tmp_path):
    config = kind(target_modules=["q_proj"], modules_to_save=["lm_head"])
    config.save_pretrained(tmp_path / "new" / "adapter")
    assert type(config).from_pretrained(str(tmp_path / "new" / "adapter")) == config
    assert type(config).from_pretrained(tmp_path / "new", subfolder="adapter") == config
    written = json.loads((tmp_path / "new" / "adapter" / "adapter_config.json").read_text())
    assert list(written) == sorted(written)
    assert written == config.to_dict() == config.to_peft_dict()


def test_what_is_no_folder_is_refused(tmp_path):
    for path in (tmp_path / "none", "\0"):
        with pytest.raises(InputError, match="no such folder"):
            LoraConfig.from_pretrained(path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        LoraConfig().save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("kind", KINDS)
def test_none_puts_tokens_before_the_text(kind):
    assert kind().is_prompt_learning is False


def test_an_error_in_a_file_names_the_file(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA", "r": 0}')
    with pytest.raises(ConfigError, match="adapter_config.json") as caught:
        VeraConfig.from_pretrained(tmp_path)
    assert [problem.key for problem in caught.value.problems] == ["r"]
