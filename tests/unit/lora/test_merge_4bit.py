"""What survives a merge into 4 bits is measured, and a loss is said."""

import warnings

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora import LoraConfig, get_peft_model
from ince.lora.merge_4bit import FAITHFUL, LostUpdateWarning, merge_into_4bit
from ince.quant import Linear4bit, NF4Config, quantize_model


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(128, 96)
        self.second = nn.Linear(96, 64, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def adapted(scale, *, double_quant=True):
    model = Two()
    quantize_model(model, NF4Config(double_quant=double_quant, compute_dtype="float32"))
    torch.manual_seed(1)
    peft = get_peft_model(
        model, LoraConfig(r=8, target_modules=["first", "second"], init_lora_weights=False)
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.mul_(scale)
    return model


def by_hand(layer, packed):
    base = layer.base_layer.dequantize(torch.float32)
    wanted = layer.get_delta_weight("default").double().flatten()
    realized = (packed.dequantize(torch.float32) - base).double().flatten()
    cosine = torch.dot(wanted, realized) / (wanted.norm() * realized.norm()).clamp(min=1e-30)
    return float(cosine), float(realized.norm() / wanted.norm()), float(wanted.norm() / base.norm())


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_what_is_measured_is_what_happened(scale, double_quant):
    model = adapted(scale, double_quant=double_quant)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostUpdateWarning)
        merged, survival = merge_into_4bit(model)
    assert [layer.name for layer in survival.layers] == ["first", "second"]
    for layer in survival.layers:
        packed = merged.get_submodule(layer.name)
        assert isinstance(packed, Linear4bit)
        cosine, norm, share = by_hand(model.get_submodule(layer.name), packed)
        # The wanted update is the difference of float32 weights: a little rounding is in it.
        assert layer.cosine == pytest.approx(cosine, abs=1e-3)
        assert layer.relative_norm == pytest.approx(norm, rel=1e-3)
        assert layer.share == pytest.approx(share, rel=1e-3)
        base = model.get_submodule(layer.name).base_layer
        assert (layer.changed > 0) == (not torch.equal(packed.packed, base.packed))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_small_update_is_lost_and_it_is_said():
    with pytest.warns(LostUpdateWarning, match=r"cosine 0\.\d\d .* Merge to 16 bits"):
        _, survival = merge_into_4bit(adapted(0.003))
    assert survival.lowest.cosine < 0.5
    assert not survival.is_faithful
    assert survival.to_dict()["is_faithful"] is False


def test_larger_updates_survive_better():
    cosines = []
    for scale in (0.003, 0.1, 3.0, 100.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LostUpdateWarning)
            cosines.append(merge_into_4bit(adapted(scale))[1].mean_cosine)
    assert cosines == sorted(cosines)
    assert cosines[-1] > FAITHFUL


def test_a_faithful_merge_is_silent_and_right():
    model = adapted(100.0)
    merged, survival = merge_into_4bit(model)
    assert survival.is_faithful
    x = torch.randn(5, 128)
    with torch.no_grad():
        wanted, got = model(x), merged(x)
    assert (wanted - got).norm() / wanted.norm() < 0.2  # what 4 bits hold


def test_layers_without_an_active_adapter_keep_their_codes():
    model = adapted(100.0)
    model.first.delete_adapter("default")
    merged, survival = merge_into_4bit(model)
    assert [layer.name for layer in survival.layers] == ["second"]
    assert torch.equal(merged.first.packed, model.first.base_layer.packed)


def test_no_4bit_layer_is_an_error():
    model = Two()
    get_peft_model(model, LoraConfig(target_modules=["first"]))
    with pytest.raises(AdapterError, match="merge to 16 bits"):
        merge_into_4bit(model)


def test_a_peft_model_gives_a_plain_model_and_names_are_checked():
    base = Two()
    quantize_model(base, NF4Config(compute_dtype="float32"))
    model = get_peft_model(base, LoraConfig(target_modules=["first"], init_lora_weights=False))
    with pytest.raises(AdapterError, match="no adapter 'defalt'"):
        merge_into_4bit(model, ["defalt"])
    with pytest.warns(LostUpdateWarning):
        merged, _ = merge_into_4bit(model, ["default"])
    assert type(merged) is Two
    assert isinstance(merged.first, Linear4bit)


def test_layers_in_floats_are_merged_with_the_adapters_that_were_named():
    base = Two()
    quantize_model(base, NF4Config(compute_dtype="float32", skip_modules=("second",)))
    config = LoraConfig(target_modules=["first", "second"], init_lora_weights=False)
    model = get_peft_model(base, config)
    model.add_adapter("other", config)
    with pytest.warns(LostUpdateWarning):
        merged, _ = merge_into_4bit(model, ["other"])
    wanted = base.second.merged_weight(torch.float32, ["other"])
    assert torch.equal(merged.second.weight, wanted)
    assert model.active_adapters == ["default"]


def test_what_was_named_is_merged_while_adapters_are_disabled():
    base = Two()
    quantize_model(base, NF4Config(compute_dtype="float32"))
    model = get_peft_model(base, LoraConfig(target_modules=["first"], init_lora_weights=False))
    with pytest.warns(LostUpdateWarning):
        wanted, _ = merge_into_4bit(model)
    with model.disable_adapter():
        with pytest.warns(LostUpdateWarning):
            merged, _ = merge_into_4bit(model, ["default"])
        assert model.base_model.adapter_state.disabled
        with pytest.raises(AdapterError, match="no active adapter"):
            merge_into_4bit(model)
    assert torch.equal(merged.first.packed, wanted.first.packed)


def test_a_layer_with_a_bias_of_the_adapters_own_is_refused():
    base = Two()
    quantize_model(base, NF4Config(compute_dtype="float32"))
    model = get_peft_model(base, LoraConfig(target_modules=["first"], bias="lora_only"))
    with pytest.raises(AdapterError, match="merge to 16 bits"):
        merge_into_4bit(model)
