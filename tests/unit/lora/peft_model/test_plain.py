"""Adapters in a model without a shell."""

import pytest
import torch

from ince.errors import AdapterError, ConfigError, InputError
from ince.lora import (
    LoraLayer,
    get_layer_status,
    get_model_status,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    load_peft_weights,
    set_peft_model_state_dict,
)


def test_injected_read_out_and_set(llama, lora, logits):
    base = llama()
    assert inject_adapter_in_model(lora(), base) is base
    tensors = get_peft_model_state_dict(base)
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    other = inject_adapter_in_model(lora(), llama())
    set_peft_model_state_dict(other, tensors)
    assert torch.equal(logits(other), logits(base))
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    set_peft_model_state_dict(other, prefixed, low_cpu_mem_usage=True)
    assert len(get_layer_status(base)) == 4
    assert get_model_status(base).adapter_model_type == "None"


def test_the_layers_of_a_state_dict_instead_of_the_config(llama, lora):
    tensors = {"model.layers.1.mlp.up_proj.lora_A.weight": torch.zeros(1)}
    base = inject_adapter_in_model(lora(layers_to_transform=[0]), llama(), state_dict=tensors)
    assert [n for n, m in base.named_modules() if isinstance(m, LoraLayer)] == [
        "model.layers.1.mlp.up_proj"
    ]
    with pytest.raises(ConfigError, match="names no adapted layer"):
        inject_adapter_in_model(lora(), llama(), state_dict={"x": torch.zeros(1)})


def test_a_shells_tensors_have_the_names_of_its_file(model):
    tensors = get_peft_model_state_dict(model, adapter_name="c")
    assert all(name.startswith("base_model.model.") for name in tensors)
    doubled = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    twice = get_peft_model_state_dict(model, doubled, "c")
    assert all(torch.equal(twice[name], tensors[name] * 2) for name in tensors)
    with_embeddings = get_peft_model_state_dict(model, save_embedding_layers=True)
    assert "base_model.model.lm_head.weight" in with_embeddings


def test_a_compiled_model_is_unwrapped(model):
    compiled = torch.compile(model, backend="eager")
    assert get_peft_model_state_dict(compiled, unwrap_compiled=True).keys() == (
        get_peft_model_state_dict(model).keys()
    )


def test_tensors_that_do_not_fit_are_named_and_nothing_is_set(model):
    tensors = get_peft_model_state_dict(model)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    first, *_ = tensors
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    for bad in (
        {name: tensor for name, tensor in changed.items() if name != first},
        changed | {"base_model.model.x": torch.zeros(1)},
        changed | {first: torch.zeros(3, 3)},
    ):
        with pytest.raises(AdapterError, match="does not fit"):
            set_peft_model_state_dict(model, bad)
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        set_peft_model_state_dict(model, changed, "x")
    with pytest.raises(InputError, match="ignore_mismatched_sizes"):
        set_peft_model_state_dict(model, changed, ignore_mismatched_sizes=True)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_a_model_without_adapters_has_no_status(llama):
    with pytest.raises(AdapterError, match="no adapted layer"):
        get_layer_status(llama())


def test_the_tensors_of_a_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    wanted = get_peft_model_state_dict(model, adapter_name="b")
    got = load_peft_weights(tmp_path, subfolder="b")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    renamed = load_peft_weights(tmp_path, "cpu", {"self_attn": "attention"})
    assert all("attention" in name for name in renamed)
