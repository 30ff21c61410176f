"""What each kind of value takes, and the form it is kept in."""

import math

import pytest

from ince.errors import ConfigError
from ince.lora.config import LoraConfig


def kept(name, value):
    return getattr(LoraConfig(**{name: value}), name)


def refusal(name, value):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**{name: value})
    (problem,) = caught.value.problems
    assert problem.key.partition(".")[0] == name
    return str(problem)


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("exclude_modules", {"b", "a"}, ("a", "b")),
        ("exclude_modules", ["b", "a", "b"], ("b", "a")),
        ("exclude_modules", [], ()),
        ("exclude_modules", r".*\.0\..*", r".*\.0\..*"),
        ("modules_to_save", ["lm_head"], ("lm_head",)),
        ("trainable_token_indices", [3, 1], (3, 1)),
        ("trainable_token_indices", range(2), (0, 1)),
        ("trainable_token_indices", {"embed_tokens": [0]}, {"embed_tokens": (0,)}),
        ("layer_replication", [[0, 2], (1, 3)], ((0, 2), (1, 3))),
        ("init_lora_weights", "Gaussian", "gaussian"),
        ("init_lora_weights", "pissa_niter_0", "pissa_niter_0"),
        ("alpha_pattern", None, {}),
        ("alpha_pattern", {"q": 0.5}, {"q": 0.5}),
        ("auto_mapping", {"base_model_class": "M", "unsloth_fixed": True}, None),
        ("lora_dropout", 0, 0),
    ],
)
def test_values_that_are_taken(name, value, form):
    assert kept(name, value) == (value if form is None else form)


def test_layers_are_a_number_or_numbers():
    for value, form in ((3, 3), ([2, 0, 2], (2, 0)), (range(3), (0, 1, 2)), ({4, 1}, (1, 4))):
        config = LoraConfig(target_modules=["q"], layers_to_transform=value)
        assert config.layers_to_transform == form


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("modules_to_save", "lm_head", "expected a list of names, got 'lm_head'"),
        ("modules_to_save", [""], "an empty name"),
        ("target_modules", "", "an empty expression"),
        ("target_modules", b"q_proj", "expected a list of names"),
        ("target_parameters", "experts.down_proj", "expected a list of names"),
        ("exclude_modules", "(", "not a regular expression"),
        ("alpha_pattern", {"(?i)q": 1}, "not a regular expression"),
        ("alpha_pattern", {"q": math.nan}, "q: "),
        ("layers_to_transform", [0, -1], "from 0 on"),
        ("layers_to_transform", True, "expected a layer number"),
        ("layers_to_transform", ["0"], "from 0 on"),
        ("layers_pattern", "(", "not a regular expression"),
        ("trainable_token_indices", [], "names no token"),
        ("trainable_token_indices", [1, 1], "names a token twice"),
        ("trainable_token_indices", [-1], "from 0 on"),
        ("trainable_token_indices", 3, "expected a list of token ids"),
        ("trainable_token_indices", {}, "by the names of embeddings"),
        ("trainable_token_indices", {"embed_tokens": []}, "names no token"),
        ("layer_replication", [[2, 0]], "pairs of layer numbers"),
        ("layer_replication", [[0, 1, 2]], "pairs of layer numbers"),
        ("layer_replication", [3], "expected pairs"),
        ("init_lora_weights", "pisa", "did you mean 'pissa'?"),
        ("init_lora_weights", "corda", "'corda' is not supported"),
        ("auto_mapping", {"a": math.nan}, "cannot be written as JSON"),
        ("lora_dropout", "0.1", "lora_dropout: "),
        ("lora_alpha", 10**400, "lora_alpha: "),
    ],
)
def test_values_that_are_refused(name, value, match):
    assert match in refusal(name, value)


def test_a_pattern_may_be_one_that_python_warns_of():
    assert kept("exclude_modules", "[[a]") == "[[a]"
