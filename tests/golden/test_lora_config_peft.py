"""`adapter_config.json` is PEFT's, key by key but the version, in both directions."""

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ince.lora.config
from ince.lora.config import LoraConfig, read_config

# PEFT warns that projections which are not saved are drawn again, and what it fills in.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Specified to not save:UserWarning"),
    pytest.mark.filterwarnings("ignore:`init_lora_weights` is 'eva':UserWarning"),
]

CASES = {
    "defaults": ("LoraConfig", {}),
    "names": ("LoraConfig", {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["x"]}),
    "regex": ("LoraConfig", {"target_modules": ".*q_proj", "exclude_modules": ".*0.*"}),
    "sizes": ("LoraConfig", {"r": 3, "lora_alpha": 7, "lora_dropout": 0.25, "use_rslora": True}),
    "patterns": ("LoraConfig", {"rank_pattern": {"q": 2}, "alpha_pattern": {"q": 9}}),
    "layers": (
        "LoraConfig",
        {"target_modules": ["q"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    ),
    "one layer": ("LoraConfig", {"target_modules": ["q"], "layers_to_transform": 1}),
    "dora": ("LoraConfig", {"use_dora": True, "fan_in_fan_out": True, "bias": "lora_only"}),
    "bias": ("LoraConfig", {"lora_bias": True, "bias": "all"}),
    "whole modules": ("LoraConfig", {"modules_to_save": ["lm_head"], "task_type": "SEQ_CLS"}),
    "tokens": ("LoraConfig", {"trainable_token_indices": [1, 5], "ensure_weight_tying": True}),
    "tokens by module": ("LoraConfig", {"trainable_token_indices": {"embed_tokens": [3]}}),
    "experts": ("LoraConfig", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "replication": ("LoraConfig", {"layer_replication": [[0, 2], [1, 3]]}),
    "base": (
        "LoraConfig",
        {"base_model_name_or_path": "a/b", "revision": "main", "inference_mode": True},
    ),
    **{
        f"start {start}": ("LoraConfig", {"init_lora_weights": start})
        for start in (False, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora")
    },
    "start without settings": (
        "LoraConfig",
        {"init_lora_weights": "eva"},  # PEFT too fills in the settings
    ),
    "library": ("LoraConfig", {"auto_mapping": {"base_model_class": "M", "parent_library": "m"}}),
    "vera": ("VeraConfig", {}),
    "vera options": (
        "VeraConfig",
        {"r": 7, "target_modules": ["q"], "projection_prng_key": 3, "save_projection": False},
    ),
    "vera, all of it": (
        "VeraConfig",
        {
            "target_modules": ["q"],
            "vera_dropout": 0.1,
            "d_initial": 0.5,
            "fan_in_fan_out": True,
            "bias": "vera_only",
            "modules_to_save": ["score"],
            "init_weights": False,
            "layers_to_transform": [1],
            "layers_pattern": ["h"],
            "task_type": "TOKEN_CLS",
        },
    ),
    "adalora": ("AdaLoraConfig", {"total_step": 100}),
    "adalora, all of it": (
        "AdaLoraConfig",
        {
            "total_step": 9,
            "beta1": 0.5,
            "beta2": 0.6,
            "orth_reg_weight": 0.0,
            "lora_alpha": 0,
            "rank_pattern": {"layers.0.q_proj.lora_E": [True, False, True]},
            "bias": "lora_only",
            "exclude_modules": ["x"],
            "lora_dropout": 0.5,
            "init_lora_weights": False,
        },
    ),
    "adalora options": (
        "AdaLoraConfig",
        {"total_step": 9, "tinit": 2, "tfinal": 3, "deltaT": 2, "init_r": 6, "target_r": 2},
    ),
}
STARTS = {
    "eva": {"eva_config": peft.EvaConfig(rho=1.5)},
    "lora_ga": {"lora_ga_config": peft.LoraGAConfig(scale="unit")},
    "loftq": {"loftq_config": peft.LoftQConfig(loftq_bits=8, loftq_iter=2)},
}

NAMES = st.lists(st.sampled_from(["q_proj", "v_proj", "mlp.up_proj"]), min_size=1, unique=True)
# Options that go together in any combination.
OPTIONS = {
    "r": st.integers(1, 512),
    "lora_alpha": st.integers(1, 512) | st.floats(0.125, 64),
    "lora_dropout": st.floats(0, 0.9),
    "target_modules": NAMES,
    "exclude_modules": st.none() | NAMES | st.just(r".*\.0\..*"),
    "fan_in_fan_out": st.booleans(),
    "bias": st.sampled_from(["none", "all", "lora_only"]),
    "use_rslora": st.booleans(),
    "use_dora": st.booleans(),
    "init_lora_weights": st.booleans() | st.sampled_from(["gaussian", "orthogonal"]),
    "modules_to_save": st.none() | st.just(["lm_head"]),
    "layers_to_transform": st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), unique=True),
    "rank_pattern": st.dictionaries(
        st.sampled_from(["q_proj", r"layers\.0\..*"]), st.integers(1, 9)
    ),
    "alpha_pattern": st.dictionaries(st.sampled_from(["q_proj", "v_proj"]), st.floats(0.5, 9)),
    "trainable_token_indices": st.none()
    | st.lists(st.integers(0, 99), min_size=1, unique=True)
    | st.fixed_dictionaries({"embed_tokens": st.just([1, 2])}),
    "target_parameters": st.none() | st.just(["experts.down_proj"]),
    "layer_replication": st.none() | st.just([[0, 4], [2, 5]]),
    "ensure_weight_tying": st.booleans(),
    "task_type": st.none() | st.sampled_from(sorted(peft.TaskType)),
    "base_model_name_or_path": st.none() | st.text(max_size=9),
    "revision": st.none() | st.just("main"),
    "inference_mode": st.booleans(),
}


def written(config, folder):
    config.save_pretrained(folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    del values["peft_version"]
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])  # sets in PEFT, without an order
    return values


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_pefts(case, tmp_path):
    kind, values = CASES[case]
    theirs = written(getattr(peft, kind)(**values), tmp_path / "theirs")
    ours = written(getattr(ince.lora.config, kind)(**values), tmp_path / "ours")
    assert ours == theirs


@pytest.mark.parametrize("case", CASES)
def test_pefts_file_reads_as_what_was_meant(case, tmp_path):
    kind, values = CASES[case]
    getattr(peft, kind)(**values).save_pretrained(tmp_path)
    config = read_config(json.loads((tmp_path / "adapter_config.json").read_text()))
    wanted = getattr(ince.lora.config, kind)(**values)
    for name, value in values.items():
        if name in ("target_modules", "exclude_modules", "modules_to_save") and value:
            assert sorted(getattr(config, name)) == sorted(getattr(wanted, name))
        else:
            assert getattr(config, name) == getattr(wanted, name)


@pytest.mark.parametrize("start", STARTS)
def test_starts_with_settings(start, tmp_path, monkeypatch):
    # PEFT asks whether scipy is there before it takes "loftq"; it is not used here.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    theirs = peft.LoraConfig(init_lora_weights=start, **STARTS[start])
    file = written(theirs, tmp_path / "theirs")
    config = read_config({**file, "peft_version": "0"})
    ours = written(config, tmp_path / "ours")
    assert ours == file
    assert peft.LoraConfig.from_pretrained(tmp_path / "ours").init_lora_weights == start


@given(st.fixed_dictionaries({}, optional=OPTIONS))
@settings(deadline=None)
def test_any_options_write_pefts_file_and_read_it(values):
    theirs = peft.LoraConfig(**values)
    ours = LoraConfig(**values)
    with tempfile.TemporaryDirectory() as folder:
        file = written(theirs, Path(folder, "theirs"))
        assert written(ours, Path(folder, "ours")) == file
        assert written(LoraConfig.from_peft_dict(file), Path(folder, "again")) == file
        again = peft.PeftConfig.from_pretrained(str(Path(folder, "ours")))
        assert dataclasses.replace(again, peft_version=theirs.peft_version) == theirs


@pytest.mark.parametrize(
    ("name", "needed"),
    [("LoraConfig", {}), ("VeraConfig", {}), ("AdaLoraConfig", {"total_step": 1})],
)
def test_no_option_of_peft_is_unknown(name, needed):
    ours = getattr(ince.lora.config, name)(**needed).to_peft_dict()
    fields = {field.name for field in dataclasses.fields(getattr(peft, name))}
    assert set(ours) == fields - {"runtime_config"}
