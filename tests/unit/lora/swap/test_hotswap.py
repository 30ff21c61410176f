"""PEFT's hot swap functions: a copy in place, and no new compilation."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ince.errors import AdapterError, ConfigError, CorruptFileError
from ince.lora import LoraConfig, PeftModel, get_peft_model
from ince.lora.placement.inject import lora_layers
from ince.lora.swap import (
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    prepare_model_for_compiled_hotswap,
)

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def write(make, folder, seed, **values):
    torch.manual_seed(seed)
    model = get_peft_model(make(), LoraConfig(init_lora_weights=False, **values)).eval()
    model.save_pretrained(folder)
    return logits(model)


@pytest.fixture
def folders(tmp_path, tiny_llama):
    wanted = [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]},
        {"r": 8, "lora_alpha": 1, "target_modules": ["down_proj"], "use_rslora": True},
    ]
    return [
        (tmp_path / str(i), write(tiny_llama, tmp_path / str(i), i, **values))
        for i, values in enumerate(wanted)
    ]


def test_swaps_give_the_other_adapters(tiny_llama, folders):
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch.testing.assert_close(logits(model), folders[0][1], rtol=0, atol=1e-5)
    for number in (1, 2, 0, 2):
        hotswap_adapter(model, folders[number][0], adapter_name="default")
        torch.testing.assert_close(logits(model), folders[number][1], rtol=0, atol=1e-5)


def test_without_preparation_the_rank_is_the_bound(tiny_llama, folders):
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    hotswap_adapter(model, folders[1][0])
    torch.testing.assert_close(logits(model), folders[1][1], rtol=0, atol=1e-5)
    with pytest.raises(AdapterError, match="rank is higher"):
        hotswap_adapter(model, folders[2][0])
    torch.testing.assert_close(logits(model), folders[1][1], rtol=0, atol=1e-5)


def test_a_compiled_model_is_compiled_once(tiny_llama, folders):
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch._dynamo.reset()
    counts = CompileCounter()
    compiled = torch.compile(model, backend=counts)
    torch.testing.assert_close(logits(compiled), folders[0][1], rtol=0, atol=1e-5)
    once = counts.frame_count
    assert once > 0
    for number in (1, 2, 0):
        hotswap_adapter(model, folders[number][0])
        torch.testing.assert_close(logits(compiled), folders[number][1], rtol=0, atol=1e-5)
    assert counts.frame_count == once


def test_tensors_in_memory(tiny_llama, folders):
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    other = PeftModel.from_pretrained(tiny_llama(), folders[1][0])
    from ince.lora import adapter_tensors

    tensors = adapter_tensors(other.get_base_model())
    hotswap_adapter_from_state_dict(model, tensors, "default", other.peft_config["default"])
    torch.testing.assert_close(logits(model), folders[1][1], rtol=0, atol=1e-5)


def test_a_bad_swap_changes_nothing(tiny_llama, folders):
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    weights = folders[1][0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFileError):
        hotswap_adapter(model, folders[1][0])
    with pytest.raises(AdapterError, match="no adapter 'defalt'"):
        hotswap_adapter(model, folders[0][0], "defalt")
    with pytest.raises(ConfigError, match="at least 4"):
        prepare_model_for_compiled_hotswap(model, target_rank=2)
    torch.testing.assert_close(logits(model), folders[0][1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"r": 8, "target_modules": ["q_proj"]},
        {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj"]},
        {"r": 4, "target_modules": "all-linear"},
    ],
)
def test_another_adapter_of_the_same_name_gets_a_room_of_its_own(tiny_llama, folders, values):
    model = PeftModel.from_pretrained(tiny_llama(), folders[1][0]).eval()
    hotswap_adapter(model, folders[1][0])
    model.delete_adapter("default")
    model.add_adapter("default", LoraConfig(init_lora_weights=False, **values))
    model.set_adapter("default")
    hotswap_adapter(model, folders[1][0])
    for name, layer in lora_layers(model.get_base_model()):
        assert layer.specs["default"].r == layer.tensors("default")["lora_A.weight"].shape[0], name
    swapped = logits(model)
    model.load_adapter(folders[1][0], "again")
    model.set_adapter("again")
    torch.testing.assert_close(swapped, logits(model), rtol=0, atol=1e-5)


def test_an_adapter_with_a_start_that_came_under_the_name_is_refused(tiny_llama, folders):
    model = PeftModel.from_pretrained(tiny_llama(), folders[1][0]).eval()
    hotswap_adapter(model, folders[1][0])
    model.delete_adapter("default")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    model.add_adapter("default", config)
    model.set_adapter("default")
    before = logits(model)
    with pytest.raises(AdapterError, match=r"(?s)start of its own.*plain form"):
        hotswap_adapter(model, folders[1][0])
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_file_that_its_start_completes_is_not_swapped_in(tiny_llama, tmp_path, folders, start):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path / "native")
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    with pytest.raises(AdapterError, match=r"(?s)start of its own.*plain form"):
        hotswap_adapter(model, tmp_path / "native")
    torch.testing.assert_close(logits(model), folders[0][1], rtol=0, atol=0)


def test_the_plain_form_of_such_a_file_is_swapped_in(tiny_llama, tmp_path, folders):
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    other = get_peft_model(tiny_llama(), config).eval()
    other.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    other.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    model = PeftModel.from_pretrained(tiny_llama(), folders[0][0]).eval()
    hotswap_adapter(model, tmp_path / "plain")
    torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=1e-4)
