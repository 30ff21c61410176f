"""Parameters by formula equal those of the model's class, and the figures in circulation."""

import pytest
import torch

from ince.plan import KNOWN_SHAPES, find_known


def config_of(shape):
    """transformers' config of a known shape, with two layers."""
    from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

    if shape.name == "GPT-3-175B":
        return GPT2Config(
            n_embd=shape.hidden,
            n_layer=2,
            n_head=shape.num_heads,
            n_positions=shape.num_positions,
            vocab_size=shape.vocabulary,
        )
    family = {"Qwen3": Qwen3Config, "Gemma": Gemma3TextConfig, "Mistr": MistralConfig}
    kind = family.get(shape.name[:5], LlamaConfig)
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=2,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.is_tied,
        pad_token_id=0,
    )


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_counting_on_the_meta_device_equals_the_formula(name):
    from transformers import AutoModelForCausalLM

    shape = KNOWN_SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    core = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    layers = [sum(p.numel() for p in layer.parameters()) for layer in core]
    assert layers[0] == layers[1]
    counted = sum(p.numel() for p in model.parameters()) + (shape.num_layers - 2) * layers[0]
    assert shape.counts.total == counted
    linear = [m for m in core[0].modules() if type(m).__name__ in ("Linear", "Conv1D")]
    assert shape.counts.linear == shape.num_layers * sum(m.weight.numel() for m in linear)


@pytest.mark.parametrize(
    ("name", "linear", "outer", "total", "attention", "every"),
    [
        ("Llama-3-8B", 6_979_321_856, 1_050_673_152, 8_030_261_248, 851_968, 2_621_440),
        ("Llama-3-70B", 68_451_041_280, 2_101_346_304, 70_553_706_496, 4_096_000, 12_943_360),
    ],
)
def test_llama_3_counts(name, linear, outer, total, attention, every):
    shape = KNOWN_SHAPES[name]
    counts = shape.counts
    assert (counts.linear, counts.embedding + counts.head, counts.total) == (linear, outer, total)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert shape.lora_parameters(1, names) == attention
    assert shape.lora_parameters(1) == every


@pytest.mark.parametrize(("r", "count"), [(1, 4_718_592), (4, 18_874_368), (8, 37_748_736)])
def test_the_counts_of_the_lora_paper(r, count):
    assert KNOWN_SHAPES["GPT-3-175B"].lora_parameters(r, ("q_proj", "v_proj")) == count


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("llama-3-8b", "Llama-3-8B"),
        ("meta-llama/Llama-3.1-70B-Instruct", "Llama-3-70B"),
        ("smollm2-135m-instruct", "SmolLM2-135M"),
        ("google/gemma-3-27b-it", "Gemma-3-27b"),
        ("somebody/llama-3-8b", None),
        ("llama-9", None),
    ],
)
def test_a_known_shape_has_several_names(said, name):
    found = find_known(said)
    assert (None if found is None else found.name) == name
