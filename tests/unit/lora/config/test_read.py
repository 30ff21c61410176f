"""A file's method decides its config; what is no config is one clear error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError, ConfigError, CorruptFileError, InputError
from ince.lora.config import (
    AdaLoraConfig,
    LoraConfig,
    PeftConfig,
    VeraConfig,
    read_config,
)

CONFIGS = [LoraConfig(r=3), VeraConfig(r=5), AdaLoraConfig(total_step=7)]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = sorted({*LoraConfig.model_fields, *AdaLoraConfig.model_fields, *VeraConfig.model_fields})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.peft_type)
def test_the_method_decides(config, tmp_path):
    assert read_config(config.to_peft_dict()) == config
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert type(config).from_pretrained(tmp_path) == config


@pytest.mark.parametrize("method", ["IA3", "PREFIX_TUNING", None, 3, ["LORA"]])
def test_other_methods_are_named(method):
    with pytest.raises(AdapterError, match=r"(?s)peft_type.*LORA"):
        read_config({"peft_type": method})


def test_a_config_of_another_class_is_refused(tmp_path):
    VeraConfig(r=4).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="not a LoRA adapter"):
        LoraConfig.from_pretrained(tmp_path)


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        PeftConfig.from_pretrained(tmp_path / "none")
    with pytest.raises((InputError, CorruptFileError)):
        PeftConfig.from_pretrained(tmp_path)
    for text in ("", "{", "[]", "3", json.dumps("LORA")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises((CorruptFileError, ConfigError)):
            PeftConfig.from_pretrained(tmp_path)


@given(st.sampled_from(["LORA", "VERA", "ADALORA"]), st.dictionaries(st.sampled_from(NAMES), JUNK))
def test_junk_is_a_config_error_and_nothing_else(method, values):
    try:
        read_config({**values, "peft_type": method})
    except (ConfigError, AdapterError) as error:
        str(error).encode()


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), JUNK))
def test_junk_options_are_a_config_error_and_nothing_else(values):
    for kind in (LoraConfig, VeraConfig, AdaLoraConfig):
        try:
            kind.model_validate(values)
        except ConfigError as error:
            str(error).encode()
