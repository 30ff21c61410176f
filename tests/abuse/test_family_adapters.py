"""Adapters of VeRA and AdaLoRA that are broken or hostile: one error, and the model as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ince.errors import AdapterError, ConfigError, InceError
from ince.lora import AdaLoraConfig, LoraConfig, LoraLayer, PeftModel, VeraConfig, get_peft_model
from ince.lora.placement.inject import inject

IDS = torch.tensor([[1, 5, 9]])
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Q = "model.layers.0.self_attn.q_proj"


def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def vera(tmp_path):
    config = VeraConfig(r=3, target_modules=["q_proj", "down_proj"], init_weights=False)
    get_peft_model(base(), config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def adalora(tmp_path):
    model = get_peft_model(
        base(),
        AdaLoraConfig(
            init_r=4,
            target_r=2,
            total_step=2,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
        ),
    ).train()
    for step in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        model.update_and_allocate(step)
    model.save_pretrained(tmp_path)
    assert sum(map(sum, model.peft_config["default"].rank_pattern.values())) == 8
    return tmp_path


def refused(folder, kind, match):
    model = base()
    before = model(IDS).logits
    with pytest.raises(kind) as caught:
        PeftModel.from_pretrained(model, folder)
    assert match in str(caught.value)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(IDS).logits, before)


def change_config(folder, change):
    values = json.loads((folder / CONFIG).read_text())
    change(values)
    (folder / CONFIG).write_text(json.dumps(values))


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS)


# ------------------------------------------------------------------------------------------ VeRA


@pytest.mark.parametrize("key", ["base_model.vera_A", "base_model.vera_B"])
def test_a_missing_projection(vera, key):
    change_weights(vera, lambda tensors: tensors.pop(key))
    refused(vera, AdapterError, key)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("base_model.vera_A", (3, 23)),
        ("base_model.vera_A", (24, 3)),
        ("base_model.vera_B", (17, 3)),
        ("base_model.vera_B", (3,)),
        (f"base_model.model.{Q}.vera_lambda_b", (16, 1)),
        (f"base_model.model.{Q}.vera_lambda_d", (4,)),
    ],
)
def test_tensors_of_another_shape(vera, key, shape):
    change_weights(vera, lambda tensors: tensors.update({key: torch.ones(shape)}))
    refused(vera, AdapterError, key)


def test_projections_that_the_config_says_are_not_there(vera):
    change_config(vera, lambda values: values.update(save_projection=False))
    refused(vera, AdapterError, "base_model.vera_A: has no place")


def test_projections_that_the_config_says_are_there(vera):
    def drop(tensors):
        del tensors["base_model.vera_A"], tensors["base_model.vera_B"]

    change_weights(vera, drop)
    refused(vera, AdapterError, "base_model.vera_B")


def test_projections_that_are_not_finite(vera):
    change_weights(vera, lambda tensors: tensors["base_model.vera_B"][0].fill_(float("nan")))
    refused(vera, InceError, "vera_B")


@pytest.mark.parametrize("change", [{"r": 2}, {"r": 0}, {"projection_prng_key": "x"}])
def test_a_config_that_is_not_of_the_tensors(vera, change):
    change_config(vera, lambda values: values.update(change))
    refused(vera, (AdapterError, ConfigError), "")


@pytest.mark.parametrize("key", [-(2**63), -1, 2**64 - 1])
def test_every_seed_that_is_taken_draws(key):
    config = VeraConfig(r=2, projection_prng_key=key, target_modules=["q_proj"])
    assert get_peft_model(base(), config)(IDS).logits.isfinite().all()


def test_layers_that_are_not_linear():
    with pytest.raises(ConfigError, match="VeRA adapts no other"):
        get_peft_model(base(), VeraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(ConfigError, match="AdaLoRA adapts no other"):
        get_peft_model(base(), AdaLoraConfig(target_modules=["embed_tokens"], total_step=5))


# --------------------------------------------------------------------------------------- AdaLoRA


def pattern_of(folder):
    return json.loads((folder / CONFIG).read_text())["rank_pattern"]


def test_it_loads_as_it_is(adalora):
    assert PeftModel.from_pretrained(base(), adalora)(IDS).logits.isfinite().all()


def test_a_pattern_that_contradicts_the_tensors(adalora):
    def flip(values):
        mask = values["rank_pattern"][f"{Q}.lora_E"]
        mask[mask.index(True) if True in mask else 0] ^= True

    change_config(adalora, flip)
    refused(adalora, AdapterError, f"{Q}.lora_A: is of shape")


def test_a_pattern_is_gone(adalora):
    change_config(adalora, lambda values: values.update(rank_pattern=None))
    refused(adalora, AdapterError, "is of shape")


def test_a_pattern_of_another_layer(adalora):
    def rename(values):
        values["rank_pattern"]["model.layers.7.self_attn.q_proj.lora_E"] = [True] * 4

    change_config(adalora, rename)
    refused(adalora, ConfigError, "is none of the adapted layers")


@pytest.mark.parametrize("mask", [[], [True], [True, True, False]])
def test_a_pattern_of_another_length(adalora, mask):
    change_config(adalora, lambda values: values["rank_pattern"].update({f"{Q}.lora_E": mask}))
    refused(adalora, ConfigError, f"is about {len(mask)} ranks, and init_r is 4")


@pytest.mark.parametrize("mask", [[True] * 5, "1111", [1, 0, 1, 0], [None] * 4, 3])
def test_a_pattern_that_is_no_mask(adalora, mask):
    change_config(adalora, lambda values: values["rank_pattern"].update({f"{Q}.lora_E": mask}))
    refused(adalora, ConfigError, "rank_pattern")


@pytest.mark.parametrize("suffix", ["lora_A", "lora_E", "lora_B"])
def test_a_missing_factor(adalora, suffix):
    key = f"base_model.model.{Q}.{suffix}"
    change_weights(adalora, lambda tensors: tensors.pop(key))
    refused(adalora, AdapterError, key)


def test_factors_with_the_names_of_lora(adalora):
    def rename(tensors):
        tensors[f"base_model.model.{Q}.lora_A.weight"] = tensors.pop(f"base_model.model.{Q}.lora_A")

    change_weights(adalora, rename)
    refused(adalora, AdapterError, "lora_A")


# ---------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("first", [VeraConfig(r=2), LoraConfig(r=2)])
def test_methods_do_not_mix(first):
    model = get_peft_model(base(), first)
    before = model(IDS).logits
    with pytest.raises(AdapterError, match="methods do not share"):
        model.add_adapter("other", AdaLoraConfig(total_step=5))
    with pytest.raises(ConfigError, match="another method"):
        inject(model.get_base_model(), AdaLoraConfig(total_step=5), "other")
    assert torch.equal(model(IDS).logits, before)


def test_a_step_of_allocation_needs_adalora():
    model = get_peft_model(base(), LoraConfig(r=2))
    with pytest.raises(AdapterError, match="no AdaLoRA adapter is trained"):
        model.update_and_allocate(1)
