"""Which parameters a config means where layers of experts are fused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ince.errors import ConfigError
from ince.lora import LoraConfig
from ince.lora.placement.find import find_places
from ince.lora.placement.fused_experts import with_fused_experts


class Experts(nn.Module):
    def __init__(self, *, biased=False):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.down_proj = nn.Parameter(torch.randn(3, 4, 4))
        if biased:
            self.down_proj_bias = nn.Parameter(torch.randn(3, 4))


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))


def block(experts=True, dense=False, biased=False):
    parts = {"q_proj": nn.Linear(4, 4)}
    if experts:
        parts |= {"gate": Router(), "experts": Experts(biased=biased)}
    if dense:
        parts |= {name: nn.Linear(4, 4) for name in ("gate_proj", "up_proj", "down_proj")}
    return nn.ModuleDict(parts)


def model(kind="mixtral", *blocks):
    base = nn.ModuleDict({"layers": nn.ModuleList(blocks or (block(), block()))})
    base.config = SimpleNamespace(model_type=kind)
    return base


def meant(base, names, **values):
    config = LoraConfig(r=2, lora_alpha=6, target_modules=names, **values)
    found = with_fused_experts(base, config)
    return {*found.target_modules}, {*(found.target_parameters or ())}, found


PAIR = r".*\.gate_up_proj"


def test_all_linear_has_them_all():
    modules, parameters, config = meant(model(), "all-linear")
    assert modules == {"q_proj"}
    assert parameters == {"gate.weight", "gate_up_proj", "down_proj"}
    assert (config.rank_pattern, config.alpha_pattern) == ({PAIR: 4}, {PAIR: 12})
    places, resolved = find_places(model(), LoraConfig(r=2, target_modules="all-linear"))
    assert {place.name.rpartition(".")[2] for place in places} == {"q_proj", "gate", "experts"}
    assert find_places(model(), resolved)[1] == resolved


@pytest.mark.parametrize(
    ("names", "modules", "parameters"),
    [
        (["q_proj", "w1", "w3"], {"q_proj"}, {"gate_up_proj"}),
        (["w2"], set(), {"down_proj"}),
        (["experts.w2", "0.gate"], set(), {"down_proj", "layers.0.gate.weight"}),
        (["q_proj", "w4"], {"q_proj", "w4"}, set()),
        (r".*\.(w\d|gate)", set(), {"gate_up_proj", "down_proj", "gate.weight"}),
        (r".*0\.(q_proj|.*w2)", {"layers.0.q_proj"}, {"layers.0.experts.down_proj"}),
    ],
)
def test_names_and_expressions(names, modules, parameters):
    assert meant(model(), names)[:2] == (modules, parameters)


def test_what_is_left_out_is_heeded():
    assert meant(model(), "all-linear", exclude_modules=["experts", "gate"])[1] == set()
    found = meant(model(), ["w2", "gate"], layers_to_transform=1)[1]
    assert found == {"layers.1.experts.down_proj", "layers.1.gate.weight"}
    assert meant(model(), "all-linear", modules_to_save=["gate"])[1] == {
        "gate_up_proj",
        "down_proj",
    }


def test_layers_that_are_layers_are_adapted_by_their_weights():
    base = model("qwen3_moe", block(experts=False, dense=True), block(dense=True))
    modules, parameters, config = meant(base, ["q_proj", "gate_proj", "up_proj"])
    assert modules == {"q_proj"}
    assert parameters == {"gate_up_proj", "gate_proj.weight", "up_proj.weight"}
    assert config.rank_pattern == {PAIR: 4}
    assert meant(base, ["0.gate_proj"])[1:2] == ({"layers.0.gate_proj.weight"},)
    places, _ = find_places(base, LoraConfig(r=2, target_modules="all-linear"))
    assert len(places) == 2 + 2 * 3 + 2


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ({"gate_up_proj": 3}, {"gate_up_proj": 3}),
        (
            {"0.experts.gate_up_proj": 3},
            {"0.experts.gate_up_proj": 3, r"layers\.1\.experts\.gate_up_proj": 4},
        ),
        ({"q_proj": 1}, {"q_proj": 1, PAIR: 4}),
    ],
)
def test_ranks_of_the_configs_own_are_kept(pattern, wanted):
    assert meant(model(), "all-linear", rank_pattern=pattern)[2].rank_pattern == wanted


@pytest.mark.parametrize(
    ("names", "missing"),
    [(["w1"], "w3"), (["w3", "w2"], "w1"), (r".*\.w1", "w3")],
)
def test_one_of_two_that_are_fused(names, missing):
    with pytest.raises(ConfigError, match=f"add '{missing}'"):
        meant(model(), names)


@pytest.mark.parametrize(
    "base",
    [
        model("qwen2_moe"),
        model("mixtral", block(biased=True)),
        model("mixtral", block(experts=False)),
        nn.ModuleDict({"layers": nn.ModuleList([block()])}),
    ],
)
def test_other_models_are_left_alone(base):
    config = LoraConfig(target_modules="all-linear")
    assert with_fused_experts(base, config) is config
