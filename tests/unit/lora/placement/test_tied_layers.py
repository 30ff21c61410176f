"""Factors of a tied head that are the embedding's."""

import pytest
import torch

from ince.errors import ConfigError
from ince.lora import LoraConfig, get_peft_model
from ince.lora.layers.layer import LoraLayer
from ince.lora.placement.find import find_places

IDS = torch.tensor([[1, 5, 9, 2]])


def tied(model, **values):
    config = {"target_modules": ["q_proj", "embed_tokens"], **values}
    return get_peft_model(
        model, LoraConfig(r=2, init_lora_weights=False, ensure_weight_tying=True, **config)
    )


def test_one_update_for_both(tiny_llama):
    model = tied(tiny_llama())
    base = model.get_base_model()
    embedding, head = base.model.embed_tokens, base.lm_head
    assert isinstance(embedding, LoraLayer)
    change = embedding.get_delta_weight("default")
    torch.testing.assert_close(head.get_delta_weight("default"), change)
    num_trained, _ = model.get_nb_trainable_parameters()
    assert num_trained == sum(
        p.numel() for name, p in model.named_parameters() if "lora" in name and "head" not in name
    )
    model(IDS).logits.square().sum().backward()
    assert embedding.lora_embedding_A["default"].grad is not None


def test_merged_they_are_one(tiny_llama):
    model = tied(tiny_llama())
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "resolved"),
    [
        (["q_proj", "lm_head"], ("q_proj", "model.embed_tokens")),
        (["embed_tokens", "lm_head"], ("embed_tokens", "model.embed_tokens")),
        (r".*(q_proj|lm_head)", r"(?:.*(q_proj|lm_head)|^model\.embed_tokens$)"),
    ],
)
def test_the_config_names_the_embedding(tiny_llama, names, resolved):
    model = tied(tiny_llama(), target_modules=names)
    assert model.peft_config["default"].target_modules == resolved
    assert "default" in model.get_base_model().lm_head.specs


def test_it_is_read_back(tiny_llama, tmp_path):
    from ince.lora import PeftModel

    model = tied(tiny_llama())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert again(IDS).logits.equal(model(IDS).logits)
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()


def test_without_a_tie_there_is_nothing_to_do(tiny_llama):
    config = LoraConfig(target_modules=["lm_head"], ensure_weight_tying=True)
    places, resolved = find_places(tiny_llama(tie_word_embeddings=False), config)
    assert [place.name for place in places] == ["lm_head"]
    assert resolved.target_modules == ("lm_head",)


@pytest.mark.parametrize(
    "values", [{"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}]
)
def test_kinds_that_cannot_be_tied(tiny_llama, values):
    config = LoraConfig(target_modules=["lm_head"], ensure_weight_tying=True, **values)
    with pytest.raises(ConfigError, match="cannot be tied"):
        find_places(tiny_llama(), config)
