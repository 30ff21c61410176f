"""What of the section `lora` learns equals what is injected into a model, count by count."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from ince.errors import ConfigError
from ince.lora import inject
from ince.plan import Setup
from ince.plan.shape_source import shape_of_values
from ince.recipe.schema import LoraSection
from ince.recipe.what_learns import what_learns

ATTENTION = ["q_proj", "v_proj"]


def base(**changes):
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        **{"tie_word_embeddings": False, "attention_bias": True, **changes},
    )


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"target_modules": ATTENTION},
        {"target_modules": r".*\.1\.self_attn\.(q|o)_proj"},
        {"exclude_modules": ["down_proj"]},
        {"rank_pattern": {"q_proj": 16, r".*2\.mlp\.up_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ATTENTION, "layers_to_transform": [1, 2], "layers_pattern": "layers"},
        {"target_modules": [*ATTENTION, "lm_head", "embed_tokens"]},
        {"use_dora": True},
        {"lora_bias": True, "bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [1, 5, 7]},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_count_is_that_of_the_injected_model(section, tied):
    config = base(tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    lora = LoraSection(r=4, **section)
    shape = shape_of_values(config.to_dict(), name="tiny", where="tiny")
    adapted, others, _ = what_learns(lora, shape)
    setup = Setup(r=4, adapted=adapted, other_sizes=others)
    inject(model, lora.to_lora_config())
    learnt = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    assert setup.num_trainable(shape) == sum(learnt.values())


def test_layers_below_the_first_that_learns_keep_nothing():
    shape = shape_of_values(base().to_dict(), name="tiny", where="tiny")
    upper = {"target_modules": ATTENTION, "layers_to_transform": 2}
    adapted, others, below = what_learns(LoraSection(**upper), shape)
    assert Setup(adapted=adapted, other_sizes=others, learns_below=below).first_layer == 2
    whole = LoraSection(**upper, modules_to_save=("embed_tokens",))
    adapted, others, below = what_learns(whole, shape)
    assert Setup(adapted=adapted, other_sizes=others, learns_below=below).first_layer == 0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"target_modules": ["q_prj"]}, "q_proj"),
        ({"rank_pattern": {"q_prj": 4}}, "q_prj"),
        ({"target_modules": ATTENTION, "layers_to_transform": [7]}, "there is no layer 7"),
    ],
)
def test_what_the_run_would_refuse_is_refused(section, said):
    shape = shape_of_values(base().to_dict(), name="tiny", where="tiny")
    with pytest.raises(ConfigError, match=said):
        what_learns(LoraSection(**section), shape)
