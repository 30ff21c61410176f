"""Where copies of whole modules go."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError
from ince.lora import LoraConfig, adapter_tensors, get_peft_model
from ince.lora.placement.find import find_places
from ince.lora.placement.saved_modules import SavedPlace


def places(model, **values):
    found, config = find_places(model, LoraConfig(target_modules=["q_proj"], **values))
    saved = [place for place in found if isinstance(place, SavedPlace)]
    return {place.name: place for place in saved}, config


def test_names_mean_what_ends_with_them(tiny_llama):
    model = tiny_llama(tie_word_embeddings=False)
    assert list(places(model, modules_to_save=["lm_head"])[0]) == ["lm_head"]
    norms, _ = places(model, modules_to_save=["norm"])
    assert len(norms) == 5  # of two layers two each, and the last
    assert list(places(model, modules_to_save=["layers.1.mlp"])[0]) == ["model.layers.1.mlp"]
    inside, _ = places(model, modules_to_save=["mlp", "up_proj"])
    assert list(inside) == ["model.layers.0.mlp", "model.layers.1.mlp"]


def test_a_tied_head_brings_the_embedding(tiny_llama):
    found, config = places(tiny_llama(), modules_to_save=["lm_head"])
    assert list(found) == ["model.embed_tokens", "lm_head"]
    assert found["lm_head"].tied_to is found["model.embed_tokens"]
    assert config.modules_to_save == ("model.embed_tokens",)
    assert config.ensure_weight_tying


def test_ties_that_are_declined(tiny_llama):
    found, config = places(tiny_llama(), modules_to_save=["lm_head"], ensure_weight_tying=False)
    assert list(found) == ["lm_head"]
    assert not config.ensure_weight_tying


def test_training_keeps_the_tie(tiny_llama):
    model = get_peft_model(
        tiny_llama(), LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    )
    base = model.get_base_model()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert base.lm_head.original_module.weight is not base.lm_head.weight
    with torch.no_grad():
        base.lm_head.weight.add_(1)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight.equal(base.lm_head.weight)
    assert {name for name in adapter_tensors(base) if "lora" not in name} == {
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.weight",
    }


def test_apart_the_merged_model_says_so(tiny_llama):
    config = LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=False
    )
    model = get_peft_model(tiny_llama(), config)
    merged = model.merge_and_unload()
    assert not merged.config.tie_word_embeddings
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight


def test_names_that_mean_nothing(tiny_llama):
    with pytest.raises(ConfigError, match="did you mean 'lm_head'"):
        places(tiny_llama(), modules_to_save=["lm_haed"])


def test_heads_of_a_task_need_not_be_there(tiny_llama):
    found, config = places(tiny_llama(), task_type="SEQ_CLS")
    assert found == {}
    assert config.modules_to_save == ("classifier", "score")


def test_what_cannot_be_copied(tiny_llama):
    with pytest.raises(ConfigError, match="no module of its own"):
        places(tiny_llama(), modules_to_save=["layers"])
    model = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    with pytest.raises(ConfigError, match="statistics"):
        places(model, modules_to_save=["norm"])


def test_nothing_adapted_is_copied(tiny_llama):
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    config = LoraConfig(target_modules=["v_proj"], modules_to_save=["self_attn"])
    with pytest.raises(AdapterError, match="inside"):
        model.add_adapter("other", config)
    assert list(model.peft_config) == ["default"]


def test_targets_inside_are_trained_whole(tiny_llama):
    model = tiny_llama()
    config = LoraConfig(target_modules=["q_proj", "up_proj"], modules_to_save=["mlp"])
    found, _ = find_places(model, config)
    assert {place.name for place in found} == {
        f"model.layers.{n}.{name}" for n in (0, 1) for name in ("mlp", "self_attn.q_proj")
    }
    with pytest.raises(ConfigError, match="touches no"):
        find_places(model, LoraConfig(target_modules=["up_proj"], modules_to_save=["mlp"]))


def test_a_target_that_is_tied_to_what_is_trained_whole(tiny_llama):
    with pytest.raises(ConfigError, match="lm_head is tied to model.embed_tokens"):
        find_places(
            tiny_llama(),
            LoraConfig(target_modules=["q_proj", "lm_head"], modules_to_save=["embed_tokens"]),
        )
