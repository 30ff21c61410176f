"""What a recipe says about attention is done, or refused with its reason."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from ince.errors import ModelReferenceError
from ince.models import choose_attention


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


@pytest.mark.parametrize("choice", ["eager", "sdpa", "flex_attention"])
def test_a_choice_is_set(model: LlamaForCausalLM, choice) -> None:
    choose_attention(model, choice)
    assert model.config._attn_implementation == choice


def test_auto_changes_nothing(model: LlamaForCausalLM) -> None:
    before = model.config._attn_implementation
    choose_attention(model, "auto", training=True)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("flex_attention", "no gradients on a CPU"),
        ("flash_attention_2", "NVIDIA"),
        ("flash_attention_3", "NVIDIA"),
    ],
)
def test_what_does_not_run_here_is_refused(model: LlamaForCausalLM, choice, why: str) -> None:
    with pytest.raises(ModelReferenceError, match=why) as caught:
        choose_attention(model, choice, training=True)
    assert caught.value.where == "model.attention"
    assert model.config._attn_implementation == "sdpa"
