"""What fails leaves everything as it was; what changes is seen; threads keep to themselves."""

import threading

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError, InputError
from ince.lora import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from ince.lora.swap import AdapterSlots, hotswap_adapter
from ince.quant import NF4Config, quantize_model


class Two(nn.Module):
    def __init__(self, last=64):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, last, bias=False)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


X = torch.randn(3, 64)


def config(**values):
    return LoraConfig(**({"r": 4, "target_modules": ["a", "b"]} | values))


def random(**values):
    return config(init_lora_weights=False, **values)


@pytest.mark.parametrize(
    ("start", "spoil"),
    [
        ({"init_lora_weights": "loftq"}, True),
        ({"init_lora_weights": "pissa"}, True),
        ({"init_lora_weights": "olora"}, True),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}}, False),
        ({"init_lora_weights": "orthogonal", "r": 3}, False),
        ({"init_lora_weights": "lora_ga"}, False),
    ],
)
def test_a_start_that_fails_half_way_leaves_nothing(start, spoil):
    model = Two()
    if spoil:
        with torch.no_grad():
            model.b.weight[0, 0] = torch.nan
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    with pytest.raises((AdapterError, ConfigError)):
        get_peft_model(model, config(**start))
    assert [type(module) for module in model.modules()] == kinds
    after = {name: (p.requires_grad, p) for name, p in model.named_parameters()}
    assert after.keys() == before.keys()
    for name, (trains, tensor) in after.items():
        assert trains is before[name][0]
        torch.testing.assert_close(tensor, before[name][1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("arguments", [(Two(), None), (Two(), {"r": 4}), (None, config())])
def test_no_model_and_no_config_are_one_clear_error(arguments):
    with pytest.raises(InputError, match="a model and a config"):
        get_peft_model(*arguments)


@pytest.fixture
def folder(tmp_path):
    base = Two()
    torch.manual_seed(9)
    model = get_peft_model(base, random()).eval()
    model.save_pretrained(tmp_path)
    return tmp_path, model(X).detach()


def test_merged_weights_follow_their_adapter(folder):
    path, wanted = folder
    for write in (
        lambda m: m.load_adapter(path, "default"),
        lambda m: hotswap_adapter(m, path, "default"),
        lambda m: set_peft_model_state_dict(m, tensors(path)),
    ):
        model = get_peft_model(Two(), random()).eval()
        model.merge_adapter()
        assert (model(X) - wanted).abs().max() > 1e-2
        write(model)
        torch.testing.assert_close(model(X), wanted, rtol=0, atol=1e-5)


def tensors(path):
    from safetensors.torch import load_file

    return load_file(path / "adapter_model.safetensors")


def test_a_merged_slot_that_is_cleared_is_the_base():
    model = get_peft_model(Two(), random()).eval()
    slots = AdapterSlots(model, config(), 1)
    model.set_adapter("slot0")
    base = model(X)
    slots.put(slots.pack(*_packed()), "slot0")
    model.merge_adapter()
    assert (model(X) - base).abs().max() > 1e-2
    slots.clear("slot0")
    torch.testing.assert_close(model(X), base, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    model.delete_adapter("slot0")
    for use in (slots.clear, slots.holds):
        with pytest.raises(AdapterError, match="was deleted"):
            use("slot0")


def _packed():
    from ince.lora import adapter_tensors

    base = Two()
    torch.manual_seed(3)
    other = get_peft_model(base, random())
    return adapter_tensors(other.get_base_model()), config()


def test_unloading_keeps_what_was_merged_and_is_not_active():
    model = get_peft_model(Two(), random()).eval()
    model.add_adapter("b", random())
    model.merge_adapter(["default", "b"])
    with torch.no_grad():
        torch.testing.assert_close(model.merge_and_unload()(X), model(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa_niter_4", "pissa"])
def test_dora_has_a_plain_form(start, tmp_path):
    base = Two()
    if start == "pissa":
        quantize_model(base, NF4Config(compute_dtype="float32"))
    model = get_peft_model(base, config(init_lora_weights=start, use_dora=True)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
        model.save_pretrained(tmp_path)
        again = Two()
        if start == "pissa":
            quantize_model(again, NF4Config(compute_dtype="float32"))
        loaded = PeftModel.from_pretrained(again, tmp_path)
        assert loaded.peft_config["default"].r == 8
        torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=1e-4)


def test_threads_with_adapters_of_their_own_do_not_meet():
    model = get_peft_model(Two(), random()).eval()
    model.add_adapter("b", random())
    wanted = {}
    with torch.no_grad():
        for name in ("default", "b"):
            model.set_adapter(name)
            wanted[name] = model(X)
        model.set_adapter("default")
    wrong = []

    def serve(name, names):
        with torch.no_grad():
            for _ in range(40):
                got = model(X, adapter_names=names) if names else model(X)
                if not torch.allclose(got, wanted[name], rtol=0, atol=1e-5):
                    wrong.append(name)

    calls = [("default", ["default"] * 3), ("b", ["b"] * 3), ("default", None)]
    threads = [threading.Thread(target=serve, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
