"""`LoraConfig`: PEFT's names and defaults, all mistakes at once, nothing ignored."""

import dataclasses
import json
import math

import peft
import pytest

from ince.errors import AdapterError, ConfigError
from ince.lora.config import EvaConfig, LoftQConfig, LoraConfig


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**values)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_defaults_are_pefts():
    ours, theirs = LoraConfig(), peft.LoraConfig()
    # PEFT's neutral values of these are an empty dictionary and an object of its own.
    for name in set(LoraConfig.model_fields) - {"loftq_config", "runtime_config"}:
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
    found = problems(
        r=0,
        lora_alpha=-1,
        lora_dropot=0.1,
        lora_dropout=1.0,
        use_qalora=True,
        layers_to_transform=1,
        target_modules="all-linear",
        eva_config={"rho": 0, "ta": 1},
        init_lora_weights="eva",
    )
    assert set(found) == {
        "r",
        "lora_alpha",
        "lora_dropot",
        "lora_dropout",
        "use_qalora",
        "layers_to_transform",
        "eva_config.rho",
        "eva_config.ta",
    }
    assert "did you mean 'lora_dropout'?" in found["lora_dropot"]
    assert "greater than or equal to 1, got 0" in found["r"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("megatron_config", {"tensor_parallel": 2}),
        ("megatron_core", "other.core"),
        ("corda_config", {"corda_method": "ipm"}),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1e-4}),
        ("monteclora_config", {"num_samples": 4}),
        ("velora_config", {"num_groups": 2}),
        ("alora_invocation_tokens", [1, 2]),
    ],
)
def test_what_is_not_built_is_refused_by_name(name, value):
    found = problems(**{name: value})
    assert set(found) == {name}
    assert "not supported" in found[name]
    if name != "megatron_core":  # PEFT writes it into every file
        with pytest.raises(ConfigError):
            LoraConfig.from_peft_dict({"peft_type": "LORA", name: value})
    with pytest.raises(ConfigError):
        LoraConfig.model_validate({name: value})


def test_starts_that_are_not_built_are_refused():
    for start in ("corda", "mica", "gausian", "pissa_niter_", "pissa_niter_x", 3):
        assert set(problems(init_lora_weights=start)) == {"init_lora_weights"}
    for start in ("orthogonal", "pissa", "pissa_niter_16", "olora", "loftq", "eva", "lora_ga"):
        assert LoraConfig(init_lora_weights=start).init_lora_weights == start


def test_a_start_with_settings_has_them():
    assert LoraConfig(init_lora_weights="eva").eva_config == EvaConfig(rho=2.0, tau=0.99)
    config = LoraConfig(init_lora_weights="loftq", loftq_config={"loftq_iter": 3})
    assert config.loftq_config == LoftQConfig(loftq_bits=4, loftq_iter=3)
    assert "set init_lora_weights='eva'" in problems(eva_config=EvaConfig())["eva_config"]


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
        ({"exclude_modules": "all-linear"}, "exclude_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"init_lora_weights": "gausian"}, "init_lora_weights"),
        ({"task_type": "CAUSAL"}, "task_type"),
        ({"lora_bias": True, "use_dora": True}, "lora_bias"),
        ({"lora_bias": True, "init_lora_weights": "olora"}, "lora_bias"),
        ({"bias": "some"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type"),
        (
            {"runtime_config": {"ephemeral_gpu_offload": True}},
            "runtime_config.ephemeral_gpu_offload",
        ),
        (
            {"trainable_token_indices": {"lm_head": [1]}, "modules_to_save": ["lm_head"]},
            "trainable_token_indices",
        ),
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
