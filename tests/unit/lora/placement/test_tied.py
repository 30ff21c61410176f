"""Which modules share a weight."""

from torch import nn

from ince.lora import LoraConfig, VeraConfig, inject
from ince.lora.placement.tied import input_embedding_name, keeps_tied, tied_names


def test_names_of_one_weight_the_embedding_first(tiny_llama):
    model = tiny_llama()
    group = ("model.embed_tokens", "lm_head")
    assert tied_names(model) == {"model.embed_tokens": group, "lm_head": group}
    assert input_embedding_name(model) == "model.embed_tokens"
    assert tied_names(tiny_llama(tie_word_embeddings=False)) == {}


def test_adapted_modules_count_as_what_they_adapt(tiny_llama):
    model = tiny_llama()
    inject(model, LoraConfig(target_modules=["lm_head"]))
    assert tied_names(model)["lm_head"] == ("model.embed_tokens", "lm_head")


def test_models_that_know_no_embedding():
    assert input_embedding_name(nn.Linear(2, 2)) is None

    class Unknowing(nn.Module):
        def get_input_embeddings(self):
            raise RuntimeError

    assert input_embedding_name(Unknowing()) is None


def test_when_ties_are_kept():
    assert keeps_tied(LoraConfig(), fresh=True)
    assert keeps_tied(VeraConfig(), fresh=True)
    assert not keeps_tied(LoraConfig(), fresh=False)
    for fresh in (True, False):
        assert keeps_tied(LoraConfig(ensure_weight_tying=True), fresh=fresh)
        assert not keeps_tied(LoraConfig(ensure_weight_tying=False), fresh=fresh)
