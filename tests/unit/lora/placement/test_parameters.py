"""Which parameters are meant, and what is refused."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError
from ince.lora import LoraConfig, adapter_tensors, inject
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.parameter_layer import ParameterLayer
from ince.lora.placement.find import find_places


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.down_proj = nn.Parameter(torch.randn(3, 4, 4))
        self.counts = nn.Parameter(torch.zeros(3))


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.gate = Router()
        self.experts = Experts()


def model():
    return nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})


def places(*parameters, modules=(), **values):
    values = {"r": 2, "target_modules": list(modules), **values}
    config = LoraConfig(target_parameters=list(parameters), **values)
    found, resolved = find_places(model(), config)
    return {place.name: place for place in found}, resolved


def test_names_are_dotted_suffixes():
    found, _ = places("experts.down_proj", "gate_up_proj")
    assert list(found) == ["layers.0.experts", "layers.1.experts"]
    place = found["layers.0.experts"]
    assert list(place.specs) == ["gate_up_proj", "down_proj"]
    stem = "base_model.model.layers.0.experts."
    assert place.shapes() == {
        f"{stem}lora_A.weight": (6, 4),
        f"{stem}lora_B.weight": (4, 6),
        f"{stem}base_layer.lora_A.weight": (6, 4),
        f"{stem}base_layer.lora_B.weight": (8, 6),
    }
    assert list(places("1.experts.down_proj")[0]) == ["layers.1.experts"]


def test_patterns_are_for_parameters_too():
    found, _ = places(
        "down_proj",
        "gate_up_proj",
        rank_pattern={"down_proj": 3, "q_proj": 2},
        alpha_pattern={r".*gate_up_proj": 4},
        modules=["q_proj"],
    )
    specs = found["layers.0.experts"].specs
    assert (specs["down_proj"].r, specs["gate_up_proj"].r) == (3, 2)
    assert (specs["down_proj"].scaling, specs["gate_up_proj"].scaling) == (8 / 3, 2)
    assert found["layers.0.q_proj"].target.spec.r == 2


def test_the_weight_of_a_linear_layer_is_that_layer():
    base = model()
    inject(base, LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"]))
    assert isinstance(base["layers"][0].q_proj, LoraLayer)


def test_routers_among_the_modules_are_adapted_by_their_weight():
    found, config = places(modules=["q_proj", "gate"])
    assert set(config.target_modules) == {"q_proj"}
    assert config.target_parameters == ("gate.weight",)
    assert list(found["layers.0.gate"].specs) == ["weight"]


def test_all_linear_leaves_parameters_alone():
    found, _ = find_places(model(), LoraConfig(r=2, target_modules="all-linear"))
    assert [place.name for place in found] == ["layers.0.q_proj", "layers.1.q_proj"]


def test_starts():
    base = model()
    torch.manual_seed(0)
    config = LoraConfig(target_modules=[], target_parameters=["experts.down_proj"], r=4)
    inject(base, config)
    inject(base, config.model_copy(update={"init_lora_weights": "gaussian"}), "gaussian")
    inject(base, config.model_copy(update={"init_lora_weights": False}), "random")
    for name in ("default", "gaussian", "random"):
        tensors = adapter_tensors(base, name)
        assert all(t.any() for key, t in tensors.items() if "lora_A" in key)
        assert all(t.any() == (name == "random") for key, t in tensors.items() if "lora_B" in key)
    assert (
        adapter_tensors(base)["base_model.model.layers.0.experts.lora_A.weight"].abs().max() <= 0.5
    )


def test_adapters_of_different_parameters_share_a_module():
    base = model()
    for name, parameter in (("a", "down_proj"), ("b", "gate_up_proj")):
        inject(base, LoraConfig(r=2, target_modules=[], target_parameters=[parameter]), name)
    nest = base["layers"][0].experts
    assert [layer.parameter_name for layer in nest.nest()] == ["down_proj", "gate_up_proj"]
    assert isinstance(nest, ParameterLayer)
    assert isinstance(nest.get_base_layer(), Experts)
    with pytest.raises(ConfigError, match="no low-rank update"):
        places("experts.counts")


@pytest.mark.parametrize(
    ("parameters", "values", "message"),
    [
        (["experts.donw_proj"], {}, "did you mean 'experts.down_proj'"),
        (["gate_proj"], {}, "matches no parameter"),
        (["down_proj"], {"r": 5}, "at most 4"),
        (["down_proj"], {"use_dora": True}, "use_dora"),
        (["down_proj"], {"lora_bias": True}, "lora_bias"),
        (["down_proj"], {"init_lora_weights": "olora"}, "olora"),
        (["down_proj"], {"rank_pattern": {"up_proj": 2}}, "matches none"),
        (["q_proj.weight"], {"modules": ["q_proj"]}, "a parameter of it"),
    ],
)
def test_mistakes(parameters, values, message):
    with pytest.raises(ConfigError, match=message):
        places(*parameters, **values)


def test_layers_of_experts_that_are_fused():
    with pytest.raises(ConfigError, match="experts.gate_up_proj"):
        find_places(model(), LoraConfig(r=2, target_modules=["q_proj", "w1"]))


def test_a_layer_that_another_adapter_has():
    base = nn.ModuleDict({"embed": nn.Embedding(4, 4)})
    inject(base, LoraConfig(r=2, target_modules=["embed"]))
    with pytest.raises(AdapterError, match="another adapter"):
        inject(base, LoraConfig(r=2, target_modules=[], target_parameters=["embed.weight"]), "b")
