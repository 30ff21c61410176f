"""Slots: what is put in is what is computed, and nothing else changes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ince.errors import AdapterError, ConfigError
from ince.lora import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model
from ince.lora.swap import AdapterSlots, prepare_model_for_compiled_hotswap

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(make, folder, seed, **values):
    """An adapter in a folder, and what the model says with it."""
    torch.manual_seed(seed)
    model = get_peft_model(make(), LoraConfig(init_lora_weights=False, **values)).eval()
    model.save_pretrained(folder)
    return logits(model)


@pytest.fixture
def folders(tmp_path, tiny_llama):
    wanted = {
        "one": {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
        "two": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
    }
    return {
        name: (tmp_path / name, trained(tiny_llama, tmp_path / name, seed, **values))
        for seed, (name, values) in enumerate(wanted.items())
    }


@pytest.fixture
def model(tiny_llama):
    return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["v_proj"])).eval()


@pytest.fixture
def slots(model):
    return AdapterSlots(model, LoraConfig(r=4, target_modules="all-linear"), 2)


def test_an_adapter_in_a_slot_is_the_adapter(model, slots, folders):
    base = logits(model)
    for slot, name in (("slot0", "one"), ("slot1", "two"), ("slot0", "two"), ("slot1", "one")):
        folder, wanted = folders[name]
        slots.put(slots.pack(folder), slot)
        model.set_adapter(slot)
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-5)
    slots.clear("slot1")
    assert torch.equal(logits(model), base)
    assert slots.holds("slot1") is None
    assert slots.holds("slot0").config.use_rslora


def test_a_swap_moves_no_tensor(model, slots, folders):
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    slots.put(slots.pack(folders["one"][0]), "slot0")
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}


def test_slots_do_not_see_each_other(model, slots, folders):
    model.set_adapter("slot1")
    before = logits(model)
    slots.put(slots.pack(folders["one"][0]), "slot0")
    assert torch.equal(logits(model), before)


def test_a_moved_model_keeps_its_slots(model, slots, folders):
    model.to(torch.float64).to(torch.float32)
    folder, wanted = folders["two"]
    slots.put(slots.pack(folder), "slot0")
    model.set_adapter("slot0")
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused_and_leaves_the_slot(model, tiny_llama, tmp_path, folders):
    slots = AdapterSlots(model, LoraConfig(r=2, target_modules=["q_proj"]), 1, prefix="small")
    model.set_adapter("small0")
    before = logits(model)
    with pytest.raises(AdapterError, match="does not have"):
        slots.pack(folders["one"][0])
    trained(tiny_llama, tmp_path / "high", 0, r=3, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"(?s)rank is higher.*at most 2"):
        slots.pack(tmp_path / "high")
    with pytest.raises(AdapterError, match="no slot 'smal0'"):
        slots.clear("smal0")
    other = AdapterSlots(model, LoraConfig(r=4, target_modules="all-linear"), 1, prefix="big")
    with pytest.raises(AdapterError, match="packed for other slots"):
        slots.put(other.pack(folders["one"][0]), "small0")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_file_that_its_start_completes_has_no_slot(model, slots, tiny_llama, tmp_path, start):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    model.set_adapter("slot0")
    before = logits(model)
    with pytest.raises(AdapterError, match=r"(?s)start of its own.*plain form"):
        slots.pack(tmp_path)
    assert torch.equal(logits(model), before)


def test_a_file_with_the_base_s_embeddings_is_packed(model, slots, tiny_llama, tmp_path):
    torch.manual_seed(5)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    other = get_peft_model(tiny_llama(), config).eval()
    other.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    embedding = other.get_base_model().model.embed_tokens.weight
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file({**load_file(path), key: embedding.detach().clone()}, path)
    slots.put(slots.pack(tmp_path), "slot0")
    model.set_adapter("slot0")
    torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=1e-5)


def test_bad_slots_leave_the_model_as_it_was(model):
    with pytest.raises(ConfigError, match="at least 1"):
        AdapterSlots(model, LoraConfig(target_modules=["q_proj"]), 0)
    AdapterSlots(model, LoraConfig(target_modules=["q_proj"]), 1, prefix="y")
    with pytest.raises(AdapterError, match=r"(?s)already.*y0"):
        AdapterSlots(model, LoraConfig(target_modules=["q_proj"]), 2, prefix="y")
    assert "y0" in model.peft_config
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConfigError, match="matches no module"):
        AdapterSlots(model, LoraConfig(target_modules=["nothing"]), 2, prefix="x")
    assert names == [name for name, _ in model.named_parameters()]


def test_tensors_need_a_config(slots):
    with pytest.raises(AdapterError, match="without a config"):
        slots.pack({})


@pytest.mark.parametrize(
    "config", [VeraConfig(r=2), AdaLoraConfig(init_r=4, target_r=2, total_step=5)]
)
def test_methods_that_have_no_slots(tiny_llama, config):
    model = get_peft_model(tiny_llama(), config)
    before = logits(model)
    with pytest.raises(AdapterError, match="another method than LoRA"):
        AdapterSlots(model, config, 2)
    with pytest.raises(AdapterError, match="another method than LoRA"):
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), before)
