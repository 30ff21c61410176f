"""What the output layer reads, and which output layers are nothing more than a product."""

import pytest
import torch
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM

from ince.lora import LoraConfig, get_peft_model
from ince.models import hidden_only_at, output_head
from ince.quant import Linear4bit, NF4Config

IDS = torch.arange(3, 11)[None]
ROWS, PLACES = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 4, 7])


@pytest.mark.parametrize("packed", [False, True])
def test_head_times_hidden_is_the_logits(tiny_llama, packed):
    model = tiny_llama(tie_word_embeddings=False)
    if packed:
        model.lm_head = Linear4bit.from_linear(model.lm_head, NF4Config(compute_dtype="float32"))
    head = output_head(model)
    with hidden_only_at(model, ROWS, PLACES) as hidden:
        model(input_ids=IDS)
    logits = model(input_ids=IDS).logits[ROWS, PLACES]
    torch.testing.assert_close(hidden[0] @ head.weight().t(), logits, rtol=1e-4, atol=1e-5)


def test_layers_that_are_more_are_left_to_the_model(tiny_llama):
    assert output_head(tiny_llama().double()) is None
    trains = tiny_llama()
    assert output_head(trains) is not None
    trains.lm_head.weight.requires_grad_(True)
    assert output_head(trains) is None
    adapted = get_peft_model(
        tiny_llama(tie_word_embeddings=False), LoraConfig(r=2, target_modules=["lm_head"])
    )
    assert output_head(adapted) is None


def test_logits_that_a_model_scales_are_left_to_it():
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=4.0,
    )
    assert output_head(GraniteForCausalLM(config).requires_grad_(False)) is None


def test_looking_leaves_mode_and_random_numbers_alone(tiny_llama):
    model = tiny_llama().train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert output_head(model) is not None
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert "forward" not in vars(model.lm_head)


def test_another_head_is_looked_at_again(tiny_llama):
    model = tiny_llama(tie_word_embeddings=False)
    assert output_head(model) is not None

    class Doubled(nn.Linear):
        pass

    doubled = Doubled(64, model.config.vocab_size, bias=False).requires_grad_(False)
    model.lm_head = doubled
    assert output_head(model) is None
