import pytest
import torch
from torch import nn

from ince.errors import ConfigError
from ince.lora import LoraConfig, inject
from ince.optim import build_optimizer, lr_ratios, set_learning_rate
from ince.optim.lr_ratios import depth_ratios, multiplier_ratios


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])


class Model(nn.Module):
    """Embeddings, three layers with a list of experts in each, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([Block() for _ in range(3)])
        self.head = nn.Linear(4, 7)

    def get_input_embeddings(self):
        return self.embed


def adapted():
    model = Model()
    targets = ["embed", "q_proj", "experts.0", "experts.1", "head"]
    inject(model, LoraConfig(r=2, target_modules=targets))
    return model


def learning(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_without_settings_there_are_no_factors():
    assert lr_ratios(adapted()) is None
    assert lr_ratios(adapted(), lr_multipliers={}) is None


def test_each_layer_learns_slower_than_the_next():
    model = adapted()
    ratios = depth_ratios(model, learning(model), 0.5)
    found = {}
    for name, ratio in ratios.items():
        words = name.split(".")
        place = ".".join(words[:2]) if words[0] == "layers" else words[0]
        found.setdefault(place, set()).add(ratio)
    assert found == {
        "embed": {0.125},
        "layers.0": {0.25},
        "layers.1": {0.5},
        "layers.2": {1.0},
        "head": {1.0},
    }


def test_a_model_without_layers_has_no_depth():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="no layers to count"):
        depth_ratios(model, learning(model), 0.9)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("q_proj", 6),
        ("lora_B", 10),
        ("layers.1", 6),
        ("layers.1.q_proj", 2),
        ("layers.1.q_proj.lora_B.default.weight", 1),
        (r".*\.layers?\..*", 0),
        (r"layers\.[02]\..*lora_A.*", 6),
        (r"(embed|head)\..*", 4),
    ],
)
def test_what_a_pattern_matches(pattern, expected):
    names = learning(adapted())
    try:
        ratios = multiplier_ratios(names, {pattern: 3.0})
    except ConfigError:
        assert expected == 0
        return
    assert sum(ratio == 3.0 for ratio in ratios.values()) == expected
    assert set(ratios.values()) == {1.0, 3.0}


def test_words_match_whole():
    """``layers.1`` is not ``layers.10``, and ``proj`` is not ``q_proj``."""
    names = ["layers.1.q_proj", "layers.10.q_proj"]
    assert multiplier_ratios(names, {"layers.1": 2.0}) == {names[0]: 2.0, names[1]: 1.0}
    with pytest.raises(ConfigError):
        multiplier_ratios(names, {"proj": 2.0})


def test_all_patterns_that_match_nothing_are_named_with_what_may_be_meant():
    names = learning(adapted())
    with pytest.raises(ConfigError) as caught:
        multiplier_ratios(names, {"q_prj": 2.0, "head": 2.0, "lora_C": 3.0, "(": 1.0, "zzz": 1.0})
    found = {p.key: (p.what, p.suggestion) for p in caught.value.problems}
    assert list(found) == [f"lr_multipliers.{name}" for name in ("q_prj", "lora_C", "(", "zzz")]
    assert "'q_proj'" in found["lr_multipliers.q_prj"][1]
    assert "lora_" in found["lr_multipliers.lora_C"][1]
    assert "regular expression" in found["lr_multipliers.("][0]
    assert "there are" in found["lr_multipliers.zzz"][1]


def test_the_three_are_multiplied():
    ratios = lr_ratios(
        adapted(),
        loraplus_lr_ratio=8,
        layer_lr_decay=0.5,
        lr_multipliers={"q_proj": 3.0, "layers.1": 10.0},
    )
    assert ratios["layers.1.q_proj.lora_B.default.weight"] == pytest.approx(8 * 0.5 * 3 * 10)
    assert ratios["layers.1.q_proj.lora_A.default.weight"] == pytest.approx(0.5 * 3 * 10)
    assert ratios["layers.0.experts.0.lora_B.default.weight"] == pytest.approx(8 * 0.25)
    assert ratios["embed.lora_embedding_B.default"] == pytest.approx(0.125)
    assert ratios["head.lora_A.default.weight"] == 1.0


def test_a_first_step_of_adam_moves_each_by_its_own_rate():
    model = adapted()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    ratios = lr_ratios(model, layer_lr_decay=0.5, lr_multipliers={"lora_B": 4.0})
    optimizer = build_optimizer(
        parameters, lr=1.0, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0, lr_ratios=ratios
    )
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()
    for name, p in parameters.items():
        moved = (p.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 * ratios[name], rel=1e-3)
