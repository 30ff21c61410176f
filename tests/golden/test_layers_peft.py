"""PEFT as the oracle for every kind of layer and variant: names, files, outputs, gradients.

One small model has all kinds. Magnitudes are spread, so that DoRA does something.
"""

import json
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import ince.lora
from ince.lora.layers.layer import LoraLayer

# PEFT warns of what the layers say themselves, and of what it cannot merge.
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups"),
    pytest.mark.filterwarnings("ignore:.*lora_bias=True:Warning"),
    # It takes the bias of B for a shard of a matrix.
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape:Warning"),
]

IDS = torch.tensor([[1, 5, 9, 2, 7, 0], [3, 3, 0, 11, 19, 2]])


class Model(nn.Module):
    """A layer of each kind, one after another."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.up = Conv1D(12, 8)
        self.down = nn.Linear(12, 8)
        self.out = nn.Linear(8, 8, bias=False)
        self.line = nn.Conv1d(8, 6, 3, stride=2, padding=1)
        self.same = nn.Conv1d(6, 8, 3, padding="same", bias=False)
        self.plane = nn.Conv2d(1, 4, (3, 2), padding=(1, 0))
        self.point = nn.Conv2d(4, 4, 1)
        self.space = nn.Conv3d(1, 3, (2, 1, 2))
        self.shared = nn.Conv1d(8, 4, 3, groups=2)

    def forward(self, ids):
        h = torch.tanh(self.embed(ids))
        h = h + torch.tanh(self.out(torch.tanh(self.down(torch.tanh(self.up(h))))))
        h = torch.tanh(self.same(torch.tanh(self.line(h.transpose(1, 2)))))
        p = torch.tanh(self.point(torch.tanh(self.plane(h.unsqueeze(1)))))
        return self.space(p.unsqueeze(1)).flatten(1), self.shared(h).flatten(1)


LINEAR = ["down", "out", "up"]
CONVOLUTIONS = ["line", "same", "plane", "point", "space"]
ALL = ["embed", *LINEAR, *CONVOLUTIONS]

CONFIGS = {
    "all": {"r": 4, "lora_alpha": 6, "target_modules": ALL},
    "rslora": {"r": 2, "target_modules": ALL, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 6, "target_modules": ALL, "use_dora": True},
    "rslora and dora": {"target_modules": ALL, "use_dora": True, "use_rslora": True, "r": 2},
    "embedding": {"r": 3, "target_modules": ["embed"]},
    "embedding, dora": {"r": 3, "target_modules": ["embed"], "use_dora": True},
    "transposed": {"r": 3, "target_modules": ["up"], "fan_in_fan_out": True},
    "transposed, dora": {"r": 3, "target_modules": ["up"], "use_dora": True},
    "biases": {"r": 4, "lora_alpha": 9, "target_modules": LINEAR + CONVOLUTIONS, "lora_bias": True},
    "patterns": {
        "r": 2,
        "target_modules": ALL,
        "rank_pattern": {"embed": 5, "^plane": 3, "d.*n": 7},
        "alpha_pattern": {"line": 3, "up|out": 5},
    },
    "patterns, dora": {
        "r": 2,
        "target_modules": ALL,
        "use_dora": True,
        "rank_pattern": {"space": 4},
        "alpha_pattern": {"embed": 3},
    },
    "all-linear": {"target_modules": "all-linear", "r": 4},
    "groups": {"target_modules": ["shared", "line"], "r": 4},
    "groups, biases": {"target_modules": ["shared"], "r": 4, "lora_bias": True},
}
MERGEABLE = [name for name in CONFIGS if not name.startswith("groups")]


def base():
    torch.manual_seed(0)
    return Model().eval()


def spread(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model.eval()


def theirs(values):
    torch.manual_seed(1)
    config = peft.LoraConfig(init_lora_weights=False, **json.loads(json.dumps(values)))
    return spread(peft.get_peft_model(base(), config))


def ours(values):
    torch.manual_seed(1)
    config = ince.lora.LoraConfig(init_lora_weights=False, **values)
    return spread(ince.lora.get_peft_model(base(), config))


def outputs(model):
    with torch.no_grad():
        return torch.cat(model(IDS), 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def different(model):
    assert (outputs(model) - outputs(base())).abs().max() > 1e-3


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pair(name):
    """Ours and theirs, each with weights of its own."""
    return ours(CONFIGS[name]), theirs(CONFIGS[name])


@pytest.fixture(scope="module")
def folders(pair, tmp_path_factory):
    one, other = (tmp_path_factory.mktemp(side) for side in ("ours", "theirs"))
    pair[0].save_pretrained(one)
    pair[1].save_pretrained(other)
    return one, other


def test_parameters_have_the_same_names_shapes_and_number(pair):
    one, other = (
        {name: (p.shape, p.requires_grad) for name, p in side.named_parameters()} for side in pair
    )
    assert one == other
    assert pair[0].get_nb_trainable_parameters() == pair[1].get_nb_trainable_parameters()


def test_our_adapter_loads_there(pair, folders):
    different(pair[0])
    close(outputs(peft.PeftModel.from_pretrained(base(), folders[0]).eval()), outputs(pair[0]))


def test_their_adapter_loads_here(pair, folders):
    different(pair[1])
    loaded = ince.lora.PeftModel.from_pretrained(base(), folders[1]).eval()
    close(outputs(loaded), outputs(pair[1]))


def test_the_files_say_the_same(folders):
    one, other = (json.loads((f / "adapter_config.json").read_text()) for f in folders)
    assert set(one.pop("target_modules")) == set(other.pop("target_modules"))
    assert one == other


def test_gradients_are_theirs(pair, folders):
    del pair
    one = ince.lora.PeftModel.from_pretrained(base(), folders[0], is_trainable=True)
    other = peft.PeftModel.from_pretrained(base(), folders[0], is_trainable=True)
    for model in (one, other):
        sum(output.square().sum() for output in model.train()(IDS)).backward()
    wanted = {n: p.grad for n, p in other.named_parameters() if p.requires_grad}
    got = {n: p.grad for n, p in one.named_parameters() if p.requires_grad}
    assert got.keys() == wanted.keys()
    for parameter, grad in got.items():
        torch.testing.assert_close(grad, wanted[parameter], rtol=1e-4, atol=1e-4)


def test_dropout_draws_where_theirs_does(folders):
    models = [
        side.PeftModel.from_pretrained(base(), folders[0], is_trainable=True)
        for side in (ince.lora, peft)
    ]
    for layer in models[0].modules():
        if isinstance(layer, LoraLayer):
            layer.specs["default"] = replace(layer.specs["default"], dropout=0.4)
    for layer in models[1].modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.lora_dropout["default"] = nn.Dropout(0.4)
    results = []
    for model in models:
        torch.manual_seed(4)
        results.append(torch.cat([o.detach() for o in model.train()(IDS)], 1))
    # A rank of 2 drops whole directions: errors of rounding grow with what is left.
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MERGEABLE, indirect=True)
def test_merged_is_theirs(name, pair, folders):
    merged = pair[0].merge_and_unload()
    close(outputs(merged), outputs(pair[0]))
    if CONFIGS[name].get("lora_bias"):
        return  # theirs cannot be merged: a layer has no bias
    other = peft.PeftModel.from_pretrained(base(), folders[0]).merge_and_unload()
    wanted = other.state_dict()
    for key, tensor in merged.state_dict().items():
        close(tensor, wanted[key])


def test_a_fresh_adapter_is_drawn_from_the_same_numbers(name):
    values = CONFIGS[name]
    for start in (True, False) if values.get("lora_bias") else (True, "gaussian", False):
        sides = []
        for side in (ince.lora, peft):
            torch.manual_seed(3)
            config = side.LoraConfig(init_lora_weights=start, **json.loads(json.dumps(values)))
            model = side.get_peft_model(base(), config)
            sides.append({n: p for n, p in model.named_parameters() if p.requires_grad})
        for parameter, tensor in sides[0].items():
            torch.testing.assert_close(tensor, sides[1][parameter], rtol=1e-5, atol=1e-6)


def test_a_merged_bias_is_scaled():
    values = CONFIGS["biases"] | {"target_modules": ["down", "line"]}
    torch.manual_seed(1)
    model = ours(values)
    close(outputs(model.merge_and_unload()), outputs(model))
    other = theirs(values)
    before = outputs(other)
    close(outputs(other.merge_and_unload()), before)
