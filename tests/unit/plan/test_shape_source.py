"""Configs become shapes; what lacks something is refused in one clear line."""

import json

import pytest
import torch

from ince.errors import ModelReferenceError
from ince.plan import read_shape

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def write(folder, **content):
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("smollm3", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("gemma", {}),
        ("gemma2", {}),
        ("gemma3_text", {}),
    ],
)
def test_a_family_is_counted_as_its_class_counts(tmp_path, family, more):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SMALL, **more, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = read_shape(str(write(tmp_path, **config.to_dict())))
    assert shape.counts.total == sum(p.numel() for p in model.parameters())


def test_the_text_part_of_a_model_that_sees_is_read(tmp_path):
    inner = {"model_type": "gemma3_text", **SMALL}
    write(tmp_path, model_type="gemma3", text_config=inner)
    assert read_shape(str(tmp_path / "config.json")).num_layers == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "llama", "hidden_size": 64}, "intermediate_size, num_hidden_layers"),
        ({"model_type": "mixtral", **SMALL}, "mixtral"),
        ({**SMALL}, "no model_type"),
        ({"model_type": "llama", **SMALL, "hidden_size": -1}, "-1"),
        ({"model_type": "llama", **SMALL, "num_hidden_layers": "many"}, "many"),
    ],
)
def test_a_config_without_what_is_needed_is_refused(tmp_path, content, said):
    write(tmp_path, **content)
    with pytest.raises(ModelReferenceError) as caught:
        read_shape(str(tmp_path))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[1]", "{", "\xff\xfe"])
def test_what_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelReferenceError):
        read_shape(str(tmp_path))


@pytest.mark.parametrize("name", ["llama-3-9b", "", "\0", "nobody/nothing", "a/b/c"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ModelReferenceError):
        read_shape(name)


def test_a_near_name_is_proposed():
    with pytest.raises(ModelReferenceError, match="did you mean 'Llama-3-8B'"):
        read_shape("lama-3-8b")
