"""Where rows of tokens go."""

import pytest
from torch import nn

from ince.errors import ConfigError
from ince.lora import LoraConfig, get_peft_model
from ince.lora.placement.find import find_places
from ince.lora.placement.token_rows import TokenPlace


def places(model, tokens, **values):
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=tokens, **values)
    found, resolved = find_places(model, config)
    return [place for place in found if isinstance(place, TokenPlace)], resolved


def test_a_list_means_the_embedding_and_what_is_tied_follows(tiny_llama):
    found, _ = places(tiny_llama(), [5, 2])
    assert [(p.name, p.token_ids) for p in found] == [
        ("model.embed_tokens", (5, 2)),
        ("lm_head", (5, 2)),
    ]
    assert found[1].tied_to is found[0]
    assert found[1].shapes() == {}
    (shape,) = found[0].shapes().values()
    assert shape == (2, 64)
    assert len(places(tiny_llama(tie_word_embeddings=False), [5, 2])[0]) == 1


def test_the_tokens_of_a_tied_head_are_the_embeddings(tiny_llama):
    found, config = places(tiny_llama(), {"lm_head": [5]})
    assert config.trainable_token_indices == {"model.embed_tokens": (5,)}
    assert [place.name for place in found] == ["model.embed_tokens", "lm_head"]
    found, config = places(tiny_llama(), {"lm_head": [5]}, ensure_weight_tying=False)
    assert config.trainable_token_indices == {"lm_head": (5,)}
    assert [place.name for place in found] == ["lm_head"]


def test_different_tokens_of_tied_modules(tiny_llama):
    tokens = {"embed_tokens": [1], "lm_head": [2]}
    found, _ = places(tiny_llama(), tokens)
    assert [place.tied_to for place in found] == [None, None]
    with pytest.raises(ConfigError, match="different tokens"):
        places(tiny_llama(), tokens, ensure_weight_tying=True)


def test_merged_rows_keep_the_tie(tiny_llama):
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3])
    merged = get_peft_model(tiny_llama(), config).merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        ([10**6], {}, "no such tokens"),
        ({"embed_token": [1]}, {}, "did you mean 'embed_tokens'"),
        ({"up_proj.weight": [1]}, {}, "matches no module"),
        ({"mlp": [1]}, {}, "no rows for tokens"),
        ([1], {"modules_to_save": ["embed_tokens"]}, "the whole of it"),
    ],
)
def test_mistakes(tiny_llama, tokens, values, message):
    with pytest.raises(ConfigError, match=message):
        places(tiny_llama(), tokens, **values)


def test_models_without_an_embedding():
    model = nn.ModuleDict({"q_proj": nn.Linear(8, 8)})
    with pytest.raises(ConfigError, match="embeds its tokens"):
        places(model, [1])
