from pathlib import Path

import pytest

from ince.errors import AdapterError
from ince.lora.insight.settings import read_settings

WHERE = Path("adapter_config.json")


def read(**config):
    return read_settings({"peft_type": "LORA", **config}, where=WHERE)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, "LoRA"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"use_dora": True, "use_rslora": True}, "rsLoRA + DoRA"),
        ({"peft_type": "VERA"}, "VeRA"),
        ({"peft_type": "ADALORA"}, "AdaLoRA"),
    ],
)
def test_the_method(config, method):
    assert read(**config).method == method


def test_scale_and_rank_of_a_layer():
    settings = read(r=4, lora_alpha=8, rank_pattern={"q_proj": 16}, alpha_pattern={"v.*": 2})
    assert settings.rank_of("model.layers.0.self_attn.q_proj") == 16
    assert settings.rank_of("model.layers.0.self_attn.k_proj") == 4
    assert settings.scale_of("model.layers.0.self_attn.v_proj", 4) == 0.5
    assert read(use_rslora=True, r=4, lora_alpha=8).scale_of("q", 4) == 4.0
    assert read(peft_type="VERA").scale_of("q", 256) == 1.0
    adalora = read(peft_type="ADALORA", init_r=12, lora_alpha=8, rank_pattern={"x": [True, False]})
    assert adalora.scale_of("q", 3) == 8 / (12 + 1e-5)
    assert read(peft_type="ADALORA", init_r=12, lora_alpha=0).scale_of("q", 3) == 12 / (12 + 1e-5)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "loftq", "lora_ga", "corda"])
def test_starts_that_take_from_the_base(start):
    assert read(init_lora_weights=start).changes_base


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base(start):
    assert not read(init_lora_weights=start).changes_base


@pytest.mark.parametrize("peft_type", ["PREFIX_TUNING", "LOHA", None, 7, ["LORA"]])
def test_another_method_is_an_error_that_names_it(peft_type):
    with pytest.raises(AdapterError, match="can be inspected") as caught:
        read(peft_type=peft_type)
    assert str(peft_type) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "sixteen"),
        ("r", 0),
        ("r", 2.5),
        ("r", True),
        ("lora_alpha", float("nan")),
        ("rank_pattern", [1]),
        ("rank_pattern", {"(": 3}),
        ("alpha_pattern", {"q": "x"}),
        ("target_modules", 5),
        ("modules_to_save", "lm_head"),
        ("base_model_name_or_path", ["x"]),
    ],
)
def test_a_value_of_a_wrong_kind_is_named(key, value):
    with pytest.raises(AdapterError, match=key):
        read(**{key: value})


def test_options_that_change_the_meaning_are_told():
    settings = read(use_qalora=True, layer_replication=[[0, 4]], arrow_config=None)
    assert any("use_qalora" in note for note in settings.notes)
    assert any("layer_replication" in note for note in settings.notes)
    assert read().notes == ()


@pytest.mark.parametrize(
    "values",
    [
        {"lora_alpha": 10**400},
        {"rank_pattern": {"q_proj": float("inf")}},
        {"alpha_pattern": {"q_proj": float("nan")}},
        {"peft_type": "VERA", "projection_prng_key": 2**70},
    ],
    ids=lambda values: next(iter(values)),
)
def test_numbers_beyond_numbers_are_named(values):
    with pytest.raises(AdapterError, match=list(values)[-1]):
        read(**values)
