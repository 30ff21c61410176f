"""`LoraConfig`: PEFT's names and defaults, all mistakes at once, nothing ignored."""

import dataclasses
import json
import math

import peft
import pytest

from ince.errors import AdapterError, ConfigError
from ince.lora import LoraConfig


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**values)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_defaults_are_pefts():
    ours, theirs = LoraConfig(), peft.LoraConfig()
    for name in LoraConfig.model_fields:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_every_option_of_peft_is_built_neutral_or_refused():
    theirs = {
        field.name: (
            field.default
            if field.default is not dataclasses.MISSING
            else field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else None
        )
        for field in dataclasses.fields(peft.LoraConfig)
        if field.name != "runtime_config"
    }
    written = LoraConfig().to_peft_dict()
    assert set(written) == set(theirs)
    for name, default in theirs.items():
        if name not in ("peft_type", "peft_version"):
            assert written[name] == default, name


def test_scaling():
    assert LoraConfig(r=16, lora_alpha=32).scaling(16, 32) == 2
    assert LoraConfig(use_rslora=True).scaling(16, 8) == 8 / math.sqrt(16)


def test_a_set_of_names_has_a_fixed_order():
    assert LoraConfig(target_modules={"v", "q", "k"}).target_modules == ("k", "q", "v")
    assert LoraConfig(target_modules=["v", "q", "v"]).target_modules == ("v", "q")
    assert LoraConfig(target_modules="All-Linear").target_modules == "all-linear"


def test_all_mistakes_are_reported_together():
    found = problems(r=0, lora_alpha=-1, lora_dropot=0.1, lora_dropout=1.0, use_dora=True)
    assert set(found) == {"r", "lora_alpha", "lora_dropot", "lora_dropout", "use_dora"}
    assert "did you mean 'lora_dropout'?" in found["lora_dropot"]
    assert "greater than or equal to 1, got 0" in found["r"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("lora_bias", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("trainable_token_indices", [1, 2]),
        ("task_type", "SEQ_CLS"),
    ],
)
def test_what_is_not_built_is_refused_by_name(name, value):
    found = problems(**{name: value})
    assert set(found) == {name}
    assert "not supported" in found[name]
    with pytest.raises(ConfigError):
        LoraConfig.from_peft_dict({"peft_type": "LORA", name: value})


def test_what_is_not_built_may_be_said_to_be_off():
    assert LoraConfig(use_dora=False, modules_to_save=None, loftq_config={}) == LoraConfig()
    assert LoraConfig(rank_pattern=None) == LoraConfig()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"r": True}, "r"),
        ({"r": "8"}, "r"),
        ({"r": 2.0}, "r"),
        ({"lora_alpha": math.inf}, "lora_alpha"),
        ({"lora_dropout": math.nan}, "lora_dropout"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": [""]}, "target_modules"),
        ({"target_modules": "(q_proj"}, "target_modules"),
        ({"exclude_modules": "["}, "exclude_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"init_lora_weights": "gausian"}, "init_lora_weights"),
        ({"task_type": "CAUSAL"}, "task_type"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"layers_to_transform": 1, "target_modules": "all-linear"}, "layers_to_transform"),
    ],
)
def test_mistaken_values(values, key):
    assert set(problems(**values)) == {key}


def test_it_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        LoraConfig().r = 4


def test_the_round_trip_through_a_file_is_exact():
    config = LoraConfig(
        r=4,
        lora_alpha=2.5,
        target_modules=["q_proj"],
        rank_pattern={"layers.0.*": 2},
        alpha_pattern={"q_proj": 3},
        layers_to_transform=[0, 1],
        task_type="CAUSAL_LM",
        init_lora_weights="gaussian",
    )
    assert LoraConfig.from_peft_dict(json.loads(json.dumps(config.to_peft_dict()))) == config


def test_options_of_a_newer_peft_are_passed_over_when_off_and_refused_when_on():
    off = {"peft_type": "LORA", "use_warp": False, "warp_config": None, "warps": []}
    assert LoraConfig.from_peft_dict(off) == LoraConfig()
    with pytest.raises(ConfigError, match="use_warp: no such option"):
        LoraConfig.from_peft_dict({"peft_type": "LORA", "use_warp": True})


@pytest.mark.parametrize("method", ["IA3", "LOHA", None, 3])
def test_other_methods_are_refused(method):
    with pytest.raises(AdapterError, match="not a LoRA adapter"):
        LoraConfig.from_peft_dict({"peft_type": method})


def test_pefts_task_type_enum_is_taken():
    assert LoraConfig(task_type=peft.TaskType.CAUSAL_LM).task_type == "CAUSAL_LM"
