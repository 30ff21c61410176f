"""A deeper model over the same weights, and the way back."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError
from ince.lora import LoraConfig, get_peft_model
from ince.lora.merge import merged_state_dict
from ince.lora.placement.replication import replicate, replication_of, restore_layers

IDS = torch.tensor([[1, 5, 9, 2]])
RANGES = [[0, 2], [0, 1]]


def config(**values):
    return LoraConfig(target_modules=["q_proj"], **{"layer_replication": RANGES, **values})


def test_layers_share_their_weights_and_know_their_places(tiny_llama):
    model = tiny_llama()
    own = model.model.layers
    assert replicate(model, RANGES)
    assert not replicate(model, RANGES)
    layers = model.model.layers
    assert len(layers) == model.config.num_hidden_layers == 3
    assert layers[2].mlp.up_proj.weight is own[0].mlp.up_proj.weight
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]
    assert [layer.self_attn.layer_idx for layer in own] == [0, 1]
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape[1] > 4
    restore_layers(model)
    assert model.model.layers is own
    assert model.config.num_hidden_layers == 2
    assert replication_of(model) is None


def test_each_time_a_layer_has_an_adapter_of_its_own(tiny_llama):
    model = get_peft_model(tiny_llama(), config())
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == 6
    assert model.get_base_model().config.num_hidden_layers == 3


def test_the_base_comes_back_with_the_last_adapter(tiny_llama):
    base = tiny_llama()
    wanted = base(IDS).logits
    model = get_peft_model(base, config())
    model.add_adapter("other", config())
    with pytest.raises(AdapterError, match="same layer_replication"):
        model.add_adapter("third", config(layer_replication=None))
    model.delete_adapter("default")
    assert base.config.num_hidden_layers == 3
    model.delete_adapter("other")
    assert base.config.num_hidden_layers == 2
    assert base(IDS).logits.equal(wanted)


def test_a_mistake_leaves_the_model_as_it_was(tiny_llama):
    base = tiny_llama()
    for values in ({"target_modules": ["nothing"]}, {"layer_replication": [[0, 3]]}):
        with pytest.raises(ConfigError):
            get_peft_model(base, LoraConfig(**{"layer_replication": RANGES, **values}))
        assert base.config.num_hidden_layers == 2
    with pytest.raises(ConfigError, match="not found"):
        replicate(nn.Linear(2, 2), RANGES)


def test_merged_weights_are_written_for_every_layer(tiny_llama):
    model = get_peft_model(tiny_llama(), config(init_lora_weights=False))
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits)
    names = {name for name, _ in merged_state_dict(model)}
    assert "model.layers.2.mlp.up_proj.weight" in names
    assert "lm_head.weight" not in names  # tied as before
    assert merged.config.tie_word_embeddings
    assert "_replication" not in str(merged.state_dict().keys())


def test_kinds_of_attention_go_with_their_layers():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    settings = Gemma3TextConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    model = Gemma3ForCausalLM(settings).eval()
    replicate(model, RANGES)
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert model(IDS).logits.shape == (1, 4, 48)
    restore_layers(model)
    assert len(model.config.layer_types) == 2
