"""Starts from data in a model: what they leave alone, and what they say."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError
from ince.lora import LoraConfig, get_eva_state_dict, get_peft_model, initialize_lora_eva_weights
from ince.lora.placement.inject import lora_layers
from ince.lora.starts.rows import all_rows

NAMES = ["rich", "poor", "narrow"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rich, self.poor, self.narrow = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        flat = self.poor(x[..., :1].expand_as(x) + 0.01 * x)
        return self.narrow(self.dropout(self.rich(x) + flat))


def batches(num=3):
    torch.manual_seed(1)
    return [torch.randn(100, 16) for _ in range(num)]


def config(rho=1.0, **values):
    values = {"r": 3, "lora_alpha": 6, "target_modules": NAMES, **values}
    return LoraConfig(init_lora_weights="eva", eva_config={"rho": rho}, **values)


# How tensors, which are no named batches, are read.
AS_THEY_ARE = {
    "forward_fn": lambda model, batch: model(batch),
    "prepare_model_inputs_fn": None,
    "prepare_layer_inputs_fn": None,
    "show_progress_bar": False,
}


def start(model, **options):
    initialize_lora_eva_weights(model, batches(), **{**AS_THEY_ARE, **options})
    return dict(lora_layers(model.get_base_model()))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_move_and_scales_stay(use_rslora):
    model = get_peft_model(Net(), config(rho=2.0, use_rslora=use_rslora))
    before = model.get_base_model().rich.scaling["default"]
    layers = start(model)
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert ranks["rich"] > 3 > ranks["poor"]
    assert ranks["narrow"] <= 4
    assert sum(ranks.values()) == 9
    for layer in layers.values():
        assert layer.scaling["default"] == pytest.approx(before)
    written = model.peft_config["default"]
    assert written.rank_pattern == {n: r for n, r in ranks.items() if r != 3}


def test_a_layer_without_rank_is_the_bases_again():
    model = get_peft_model(Net(), config())
    found = get_eva_state_dict(model, batches(), **AS_THEY_ARE)
    found["poor"] = found["poor"][:0]
    initialize_lora_eva_weights(model, eva_state_dict=found)
    assert type(model.get_base_model().poor) is nn.Linear
    assert model.peft_config["default"].target_modules == ("rich", "narrow")


def test_the_base_reads_without_dropout_and_without_adapters():
    wanted = get_eva_state_dict(Net().eval(), batches(), config(), **AS_THEY_ARE)
    model = get_peft_model(Net(), config())
    model.add_adapter("loud", LoraConfig(target_modules=NAMES, init_lora_weights=False))
    model.set_adapter("loud")
    model.train()
    model.get_base_model().dropout.eval()
    found = get_eva_state_dict(model, batches(), **AS_THEY_ARE)
    assert found.keys() == wanted.keys()
    for name, a_RD in found.items():
        torch.testing.assert_close(a_RD, wanted[name])
    assert model.training
    assert not model.get_base_model().dropout.training
    assert not model.base_model.adapter_state.disabled


def test_rows_by_layer():
    seen = []

    def first_rows(x, prepared, name):
        seen.append(name)
        return all_rows(x, prepared, name)[:50]

    start(get_peft_model(Net(), config()), prepare_layer_inputs_fn={"poor": first_rows})
    assert set(seen) == {"poor"}


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="give peft_config"):
        get_eva_state_dict(Net(), batches(), **AS_THEY_ARE)
    with pytest.raises(AdapterError, match=r"rank 5 of \(4, 16\)"):
        get_eva_state_dict(Net(), batches(), config(r=5), **AS_THEY_ARE)
    model = get_peft_model(Net(), config())
    with pytest.raises(AdapterError, match="not adapted"):
        start(model, prepare_layer_inputs_fn={"other": all_rows})
    found = get_eva_state_dict(model, batches(), **AS_THEY_ARE)
    with pytest.raises(AdapterError, match="another width"):
        initialize_lora_eva_weights(model, eva_state_dict=found | {"rich": torch.ones(3, 5)})
