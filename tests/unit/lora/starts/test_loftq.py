"""LoftQ: the base goes into 4 bits, and the adapter repairs what that lost."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ince.errors import AdapterError, InputError
from ince.lora import LoraConfig, PeftModel, get_peft_model
from ince.lora.starts.loftq import loftq
from ince.lora.starts.replace_loftq import replace_lora_weights_loftq
from ince.quant import Linear4bit, NF4Config, quantize_model

CONFIG = NF4Config(compute_dtype="float32")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(128, 96)
        self.second = nn.Linear(96, 64, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def config(**values):
    values = {"r": 8, "lora_alpha": 16, "init_lora_weights": "loftq", **values}
    return LoraConfig(target_modules=["first", "second"], **values)


def error(weight, start, s):
    return (weight - start.quantized.dequantize(torch.float32) - s * start.b_OR @ start.a_RD).norm()


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_it_is_the_best_repair_of_its_rank_at_any_scale(s):
    torch.manual_seed(0)
    weight = torch.randn(96, 128)
    start = loftq(weight, 8, s, config=CONFIG)
    lost = weight - start.quantized.dequantize(torch.float32)
    tail = torch.linalg.svdvals(lost)[8:]
    torch.testing.assert_close(error(weight, start, s), tail.norm(), rtol=1e-4, atol=0)
    assert torch.equal(start.quantized.packed, Linear4bit.from_weight(weight, config=CONFIG).packed)


def test_more_iterations_lose_less_than_one():
    torch.manual_seed(0)
    weight = torch.randn(96, 128) * torch.linspace(0.1, 3, 128)
    errors = [
        error(weight, loftq(weight, 8, 2, config=CONFIG, num_iterations=n), 2) for n in (1, 5)
    ]
    assert errors[1] < errors[0]


def test_white_noise_gives_what_chance_gives_and_no_more():
    """The null model: the top 16 of 256 directions of a white error hold about 18% of it."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256)
    start = loftq(weight, 16, 1, config=CONFIG)
    lost = weight - start.quantized.dequantize(torch.float32)
    gain = 1 - (error(weight, start, 1) / lost.norm()) ** 2
    white = torch.linalg.svdvals(torch.randn(256, 256)).square()
    assert gain.item() == pytest.approx((white[:16].sum() / white.sum()).item(), abs=0.03)


def test_an_adapter_begins_nearer_to_the_original_than_its_quantized_base(tmp_path):
    original, x = Two(), torch.randn(64, 128)
    wanted = original(x)
    model = get_peft_model(Two(), config())
    assert isinstance(model.get_base_model().first.base_layer, Linear4bit)
    with torch.no_grad(), model.disable_adapter():
        plain = (model(x) - wanted).norm()
    with torch.no_grad():
        assert (model(x) - wanted).norm() < plain
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(Two(), tmp_path)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=1e-5)
        packed = Two()
        quantize_model(packed, CONFIG)
        there = PeftModel.from_pretrained(packed, tmp_path)
        torch.testing.assert_close(there(x), model(x), rtol=0, atol=1e-5)


def test_what_it_cannot_do_is_said_and_the_model_is_as_it_was():
    with pytest.raises(AdapterError, match="4 bits here"):
        get_peft_model(Two(), config(loftq_config={"loftq_bits": 8}))
    packed = Two()
    quantize_model(packed, CONFIG)
    with pytest.raises(AdapterError, match="replace_lora_weights_loftq"):
        get_peft_model(packed, config())
    assert isinstance(packed.first, Linear4bit)
    model = get_peft_model(Two(), config(init_lora_weights=True))
    with pytest.raises(AdapterError, match="other adapters stand on"):
        model.add_adapter("second", config())
    assert type(model.get_base_model().first.base_layer) is nn.Linear


@pytest.fixture
def originals(tmp_path):
    save_file(Two().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_originals_repair_a_base_that_is_in_4_bits(originals):
    x = torch.randn(64, 128)
    wanted = Two()(x)
    packed = Two()
    quantize_model(packed, CONFIG)
    model = get_peft_model(packed, config(init_lora_weights=True))
    with torch.no_grad():
        plain = (model(x) - wanted).norm()
        replace_lora_weights_loftq(model, originals)
        better = (model(x) - wanted).norm()
    assert better < plain
    before = model(x)
    replace_lora_weights_loftq(model, originals, callback=lambda *_: False)
    assert torch.equal(model(x), before)


def test_other_originals_are_refused(originals, tmp_path):
    packed = Two()
    quantize_model(packed, CONFIG)
    model = get_peft_model(packed, config(init_lora_weights=True))
    with pytest.raises(InputError, match="not known"):
        replace_lora_weights_loftq(model)
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        replace_lora_weights_loftq(model, originals, "x")
    save_file({"first.weight": torch.zeros(3, 3)}, originals / "model.safetensors")
    with pytest.raises(AdapterError, match="not the original"):
        replace_lora_weights_loftq(model, originals)
    plain = get_peft_model(Two(), config(init_lora_weights=True))
    with pytest.raises(AdapterError, match="no error to repair"):
        replace_lora_weights_loftq(plain, originals)
