"""Loaded from a folder or from tensors, beside others or in the place of one; wholly or not."""

import pytest
import torch
from safetensors.torch import load_file

from ince.errors import AdapterError, InputError
from ince.lora import LoraLayer, PeftModel, adapter_tensors, get_peft_model
from ince.lora.base_identity import base_digest, forget_origin, note_origin


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def tensors_in(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_folder_as_text_or_path_and_its_subfolders(llama, model, folder, logits):
    for reference in (folder, str(folder)):
        assert torch.equal(logits(PeftModel.from_pretrained(llama(), reference)), logits(model))
    loaded = PeftModel.from_pretrained(llama(), folder, "x", subfolder="b")
    model.set_adapter("b")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.load_adapter(folder, "y", subfolder="c") == ([], [])
    assert loaded.active_adapters == ["x"]


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_tensors_at_hand(llama, model, lora, folder, logits, prefix):
    tensors = {
        name.replace("base_model.model.", prefix): tensor
        for name, tensor in tensors_in(folder).items()
    }
    loaded = PeftModel.from_pretrained(llama(), tensors, config=lora())
    assert torch.equal(logits(loaded), logits(model))
    # They stay the caller's: training does not write into them.
    with torch.no_grad():
        for parameter in adapter_tensors(loaded.get_base_model()).values():
            parameter.zero_()
    assert all(tensor.any() for tensor in tensors.values())
    with pytest.raises(InputError, match="tensors alone do not say"):
        loaded.load_adapter(tensors, "other")
    loaded.load_adapter(tensors, "default")
    assert torch.equal(logits(loaded), logits(model))


def test_tensors_are_judged_as_files_are(llama, model, lora, folder):
    tensors = tensors_in(folder)
    first = next(iter(tensors))
    base = llama()
    for bad, match in (
        (tensors | {first: tensors[first] * torch.nan}, "NaN or infinite"),
        (tensors | {first: torch.zeros(2, 16, dtype=torch.int32)}, "floating-point"),
        (tensors | {first: "text"}, "floating-point"),
        ({}, "does not fit"),
    ):
        with pytest.raises(AdapterError, match=match):
            PeftModel.from_pretrained(base, bad, config=lora())
    assert not any(isinstance(module, LoraLayer) for module in base.modules())


def test_names_can_be_mapped(llama, model, folder, logits, lora):
    renamed = {
        name.replace("self_attn", "attention"): tensor
        for name, tensor in tensors_in(folder).items()
    }
    mapping = {"attention": "self_attn", r"self_attn\.(.)": r"never.\1"}
    loaded = PeftModel.from_pretrained(llama(), renamed, config=lora(), key_mapping=mapping)
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(AdapterError, match="the same name"):
        loaded.load_adapter(folder, "x", key_mapping={r"layers\.\d": "layers.0"})


def test_a_config_in_place_of_the_files(llama, folder, lora):
    loaded = PeftModel.from_pretrained(llama(), folder, config=lora(lora_alpha=32))
    layer = next(module for module in loaded.modules() if isinstance(module, LoraLayer))
    assert layer.scaling == {"default": 16.0}


# ------------------------------------------------------------------------------ another's place


def test_an_adapter_of_the_same_name_takes_the_new_weights(model, folder, logits):
    wanted = logits(model)
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    parameter = layer.tensors("default")["lora_A.weight"]
    with torch.no_grad():
        for tensor in adapter_tensors(model.get_base_model()).values():
            tensor.zero_()
    model.load_adapter(folder, "default", is_trainable=True)
    assert torch.equal(logits(model), wanted)
    # The same parameters: an optimizer goes on with them.
    assert layer.tensors("default")["lora_A.weight"] is parameter
    assert parameter.requires_grad
    model.load_adapter(folder, "default")
    assert not parameter.requires_grad


def test_weights_that_mean_something_else_do_not_take_its_place(model, folder, llama, lora, logits):
    before = logits(model)
    get_peft_model(llama(), lora(lora_alpha=20)).save_pretrained(folder / "scaled")
    get_peft_model(llama(), lora(use_rslora=True)).save_pretrained(folder / "rooted")
    with pytest.raises(AdapterError, match="lora_alpha=20"):
        model.load_adapter(folder / "scaled", "default")
    with pytest.raises(AdapterError, match="use_rslora=True"):
        model.load_adapter(folder / "rooted", "default")
    with pytest.raises(AdapterError, match="r=3"):
        model.load_adapter(folder / "b", "default")
    with pytest.raises(AdapterError, match="does not fit"):
        model.load_adapter(folder / "c", "default")
    assert torch.equal(logits(model), before)


# ------------------------------------------------------------------------------------ the modes


def test_frozen_is_for_evaluation_and_trainable_keeps_the_mode(llama, folder):
    model = PeftModel.from_pretrained(llama().train(), folder)
    assert not any(module.training for module in model.modules())
    model.get_base_model().model.layers[0].train()
    model.load_adapter(folder, "x")
    assert not any(module.training for module in model.modules())
    model.train()
    model.load_adapter(folder, "y", is_trainable=True)
    assert all(module.training for module in model.modules())


def test_weights_are_kept_and_not_copied(llama, folder):
    model = PeftModel.from_pretrained(llama(), folder)
    storages = {
        tensor.untyped_storage().data_ptr()
        for tensor in adapter_tensors(model.get_base_model()).values()
    }
    # Each has memory of its own: tools that look for tied weights would drop the others.
    assert len(storages) == len(adapter_tensors(model.get_base_model()))


@pytest.mark.parametrize("is_float32", [True, False])
def test_in_the_precision_of_the_base(llama, folder, is_float32):
    base = llama().to(torch.bfloat16)
    model = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=is_float32)
    wanted = torch.float32 if is_float32 else torch.bfloat16
    found = {tensor.dtype for tensor in adapter_tensors(base).values()}
    assert found == {wanted}
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()


def test_what_has_no_effect_is_taken_and_what_would_is_not(llama, folder):
    model = PeftModel.from_pretrained(llama(), folder, low_cpu_mem_usage=True)
    model.load_adapter(folder, "x", torch_device="cpu", low_cpu_mem_usage=True)
    with pytest.raises(InputError, match="ephemeral_gpu_offload"):
        model.load_adapter(folder, "y", ephemeral_gpu_offload=True)
    assert list(model.peft_config) == ["default", "x"]


# -------------------------------------------------------------------------------- another base


class Origin:
    def __init__(self, digest):
        self.weights_digest = digest


def test_an_adapter_knows_its_base(llama, lora, tmp_path, logits):
    base = llama()
    note_origin(base, Origin("one"))
    model = get_peft_model(base, lora())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "ince.json").is_file()
    for digest in ("one", None):
        again = llama()
        if digest is not None:
            note_origin(again, Origin(digest))
        assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path)), logits(model))
    other = llama()
    note_origin(other, Origin("two"))
    with pytest.raises(AdapterError, match="trained on another base") as caught:
        PeftModel.from_pretrained(other, tmp_path)
    assert "ince.json" in str(caught.value)
    assert not any(isinstance(module, LoraLayer) for module in other.modules())
    (tmp_path / "ince.json").unlink()
    PeftModel.from_pretrained(other, tmp_path)


def test_a_merged_model_is_no_longer_the_base(llama, lora):
    base = llama()
    note_origin(base, Origin("one"))
    model = get_peft_model(base, lora())
    assert base_digest(model.get_base_model()) == "one"
    assert base_digest(model.merge_and_unload()) is None
    assert base_digest(model.unload()) == "one"
    forget_origin(base)
    assert base_digest(base) is None
