"""Every mistake arrives as one `ConfigError`, whichever way the values came in."""

import json
import re

import numpy as np
import pytest
import torch

from ince.errors import AdapterError, ConfigError
from ince.lora.config import (
    AdaLoraConfig,
    EvaConfig,
    LoftQConfig,
    LoraConfig,
    LoraGAConfig,
    VeraConfig,
    read_config,
)
from ince.lora.config.options import is_off, shown

WAYS = {
    "construction": lambda values: LoraConfig(**values),
    "validation": LoraConfig.model_validate,
    "file": lambda values: LoraConfig.from_peft_dict({**values, "peft_type": "LORA"}),
    "any file": lambda values: read_config({**values, "peft_type": "LORA"}),
}
MISTAKES = {
    "r": 0,
    "lora_alhpa": 3,
    "use_qalora": True,
    "layers_to_transform": 1,
    "target_modules": "all-linear",
    "init_lora_weights": "eva",
    "eva_config": {"rho": 0.5, "tua": 1},
    "lora_bias": True,
    "use_dora": True,
    "rank_pattern": {"q_proj": 0, "v_proj": 2},
}
KEYS = {
    "eva_config.rho",
    "eva_config.tua",
    "layers_to_transform",
    "lora_alhpa",
    "lora_bias",
    "r",
    "rank_pattern.q_proj",
    "use_qalora",
}


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")

    def __eq__(self, other):
        raise RuntimeError("no")

    def __bool__(self):
        raise RuntimeError("no")

    __hash__ = object.__hash__


def endless():
    value = []
    value.append(value)
    return value


HOSTILE = {
    "object": Hostile(),
    "tensor": torch.ones(3),
    "array": np.array([1, 2]),
    "cycle": endless(),
    "integer of 5000 digits": 10**5000,
    "integer beyond float": -(10**400),
    "range": range(10**12),
    "range beyond a word": range(10**30),
    "mixed set": {1, "a"},
    "unhashable names": [["a"]],
    "half a character": "\ud800",
    "half a character in a table": {"\ud800": 1},
    "repetition": "a{99999999999}",
    "nesting": "(" * 5000,
    "flag inside": {"(?i)q": 1},
    "numbers as names": {1: 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_all_mistakes_arrive_in_one_error(way):
    with pytest.raises(ConfigError) as caught:
        WAYS[way](MISTAKES)
    assert {problem.key for problem in caught.value.problems} == KEYS


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"layers_to_transform": 1, "target_modules": "all-linear"}, "layers_to_transform"),
        ({"target_modules": {1, "a"}}, "target_modules"),
        ({"loftq_config": np.array([1, 2])}, "loftq_config"),
        ({"qalora_group_size": 10**5000}, "qalora_group_size"),
    ],
)
def test_no_error_of_pydantic_comes_through(way, values, key):
    with pytest.raises(ConfigError) as caught:
        WAYS[way](values)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (LoraConfig, {}),
        (VeraConfig, {}),
        (AdaLoraConfig, {"total_step": 10}),
        (EvaConfig, {}),
        (LoftQConfig, {}),
        (LoraGAConfig, {}),
    ],
)
def test_hostile_values_are_a_config_error_and_nothing_else(kind, more, value):
    for name in (*kind.model_fields, *kind._not_built, "peft_type", "peft_version", "unknown"):
        try:
            repr(kind(**{**more, name: value}))
        except ConfigError as error:
            json.dumps([str(error), error.to_dict()])


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_set_of_options_is_a_config_error(value):
    for take in (LoraConfig.model_validate, LoraConfig.from_peft_dict, read_config):
        with pytest.raises((ConfigError, AdapterError)):
            take(value)


def test_names_that_are_no_text_are_named():
    with pytest.raises(ConfigError, match=re.escape("(1, 2): no such option")):
        LoraConfig.model_validate({(1, 2): 3})


def test_a_config_is_itself():
    config = LoraConfig(r=3)
    assert LoraConfig.model_validate(config) is config


def test_parts_may_be_objects_or_their_options():
    by_name = LoraConfig(init_lora_weights="eva", eva_config={"rho": 1.5})
    assert by_name == LoraConfig(init_lora_weights="eva", eva_config=EvaConfig(rho=1.5))
    with pytest.raises(ConfigError, match="eva_config: expected EvaConfig or its options"):
        LoraConfig(init_lora_weights="eva", eva_config=LoftQConfig())


def test_what_concerns_training_alone_is_not_held_against_a_file():
    # PEFT leaves the settings of a start in the file of an adapter that it converted.
    values = {"eva_config": {"rho": 1.5}, "init_lora_weights": True, "qalora_group_size": 8}
    config = LoraConfig.from_peft_dict({**values, "peft_type": "LORA"})
    assert config.to_peft_dict()["eva_config"]["rho"] == 1.5
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**values)
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {"eva_config", "qalora_group_size"}


def test_off_means_asking_for_nothing():
    assert all(is_off(value) for value in (None, False, 0, 0.0, {}, [], (), set()))
    assert not any(is_off(value) for value in (True, 1, {"a": 1}, [0], "", "no", torch.zeros(2)))


def test_what_is_shown_is_short_and_never_fails():
    assert shown("a") == "'a'"
    assert len(shown("a" * 10**6)) < 100
    assert shown(Hostile()) == "a value of type Hostile"
