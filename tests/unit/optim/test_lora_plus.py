import pytest
import torch
from torch import nn

from ince.errors import ConfigError
from ince.lora import LoraConfig, VeraConfig, inject
from ince.optim import create_loraplus_optimizer, lora_plus_groups, lora_plus_ratios


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.norm(self.words(ids)))


def adapted(config=None):
    model = Words()
    inject(model, config or LoraConfig(r=2, target_modules=["words", "head"]))
    for parameter in (*model.norm.parameters(), model.head.base_layer.bias):
        parameter.requires_grad_(True)
    return model


def named_groups(model, **values):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = lora_plus_groups(model, **({"lr": 0.1, "ratio": 8} | values))
    return [(g["lr"], g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in groups]


def test_the_four_groups():
    assert named_groups(adapted(), lr_embedding=0.01, weight_decay=0.5) == [
        (0.1, 0.5, ["head.lora_A.default.weight"]),
        (0.01, 0.5, ["words.lora_embedding_A.default", "words.lora_embedding_B.default"]),
        (0.8, 0.5, ["head.lora_B.default.weight"]),
        (0.8, 0.0, ["norm.weight", "norm.bias", "head.base_layer.bias"]),
    ]


def test_vectors_of_vera_count_as_b():
    model = Words()
    inject(model, VeraConfig(r=2, target_modules=["head"]))
    *_, (lr, _, names), _ = named_groups(model)
    assert lr == pytest.approx(0.8)
    assert len(names) == 2


def test_ratios_by_name():
    ratios = lora_plus_ratios(adapted(), 8)
    assert {name for name, ratio in ratios.items() if ratio == 8} == {
        "head.lora_B.default.weight",
        "head.base_layer.bias",
        "norm.weight",
        "norm.bias",
    }
    assert set(ratios.values()) == {1.0, 8}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"loraplus_lr_ratio": 0}, "loraplus_lr_ratio"),
        ({"loraplus_lr_ratio": float("inf")}, "loraplus_lr_ratio"),
        ({"loraplus_lr_embedding": -1}, "lr_embedding"),
        ({"loraplus_weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_numbers_that_cannot_be(values, key):
    options = {"lr": 0.1, "loraplus_lr_ratio": 16.0} | values
    with pytest.raises(ConfigError) as caught:
        create_loraplus_optimizer(adapted(), torch.optim.AdamW, **options)
    assert key in [problem.key for problem in caught.value.problems]


def test_options_of_the_optimizer_reach_it():
    optimizer = create_loraplus_optimizer(
        adapted(), torch.optim.SGD, lr=0.1, loraplus_lr_ratio=2, momentum=0.7
    )
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_embeddings_keep_32_bits_in_an_optimizer_of_8():
    import bitsandbytes

    model = adapted()
    create_loraplus_optimizer(
        model, bitsandbytes.optim.AdamW8bit, lr=0.1, loraplus_lr_ratio=2, eps=1e-6
    )
    overrides = bitsandbytes.optim.GlobalOptimManager.get_instance().module_weight_config_triple
    assert any(
        module is model.words.base_layer and values == {"optim_bits": 32}
        for module, _, values in overrides
    )
