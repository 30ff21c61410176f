"""`adapter_config.json` is PEFT's, key by key but the version, in both directions."""

import json

import peft
import pytest

import ince.lora.config
from ince.lora.config import read_config

# PEFT warns that projections which are not saved are drawn again.
pytestmark = pytest.mark.filterwarnings("ignore:Specified to not save:UserWarning")

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
    "vera": ("VeraConfig", {}),
    "vera options": (
        "VeraConfig",
        {"r": 7, "target_modules": ["q"], "projection_prng_key": 3, "save_projection": False},
    ),
    "adalora": ("AdaLoraConfig", {"total_step": 100}),
    "adalora options": (
        "AdaLoraConfig",
        {"total_step": 9, "tinit": 2, "tfinal": 3, "deltaT": 2, "init_r": 6, "target_r": 2},
    ),
}
STARTS = {
    # Not "loftq": PEFT asks for scipy, and a config of its own would not be a check of ours.
    "eva": {"eva_config": peft.EvaConfig(rho=1.5)},
    "lora_ga": {"lora_ga_config": peft.LoraGAConfig(scale="unit")},
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
def test_starts_with_settings(start, tmp_path):
    theirs = peft.LoraConfig(init_lora_weights=start, **STARTS[start])
    file = written(theirs, tmp_path / "theirs")
    config = read_config({**file, "peft_version": "0"})
    ours = written(config, tmp_path / "ours")
    assert ours == file
    assert peft.LoraConfig.from_pretrained(tmp_path / "ours").init_lora_weights == start
