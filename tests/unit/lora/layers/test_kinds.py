"""Which layers have a geometry, and what is said of those that have none."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ince.errors import AdapterError
from ince.lora.layers.kinds import geometry_of, is_linear, is_transposed, why_not
from ince.lora.layers.layer import LoraLayer


class Renamed(nn.Linear):
    """Only its name is new."""


class Routing(nn.Linear):
    """Gives something else."""

    def forward(self, x):
        return super().forward(x).softmax(-1)


class Shifted(nn.Embedding):
    """Positions that begin at two, as OPT's."""

    def forward(self, ids):
        return super().forward(ids + 2)


def weight_normed():
    return parametrizations.weight_norm(nn.Conv1d(3, 4, 2))


@pytest.mark.parametrize(
    "base", [nn.Linear(3, 2), Renamed(3, 2), nn.Embedding(3, 2), nn.Conv1d(3, 2, 1)]
)
def test_known(base):
    geometry = geometry_of(base)
    assert geometry is not None
    assert geometry.base is base


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: nn.LayerNorm(3), "is a LayerNorm, which LoRA does not adapt"),
        (lambda: nn.MultiheadAttention(4, 1), "is a MultiheadAttention, which LoRA does not adapt"),
        (lambda: nn.MultiheadAttention(4, 1).out_proj, "in a way of its own"),
        (lambda: nn.EmbeddingBag(4, 1), "is a EmbeddingBag, which LoRA does not adapt"),
        (lambda: nn.ConvTranspose1d(4, 1, 1), "which LoRA does not adapt"),
        (lambda: Routing(3, 2), "is a Routing, which uses its weight in a way of its own"),
        (lambda: Shifted(3, 2), "in a way of its own"),
        (lambda: nn.Embedding(3, 2, max_norm=1.0), "changes its weight in each forward"),
        (weight_normed, "whose weight is computed anew"),
    ],
)
def test_unknown(make, what):
    base = make()
    assert geometry_of(base) is None
    assert what in why_not(base)
    with pytest.raises(AdapterError, match="the layer is a "):
        LoraLayer(base)


def test_an_embedding_whose_scale_is_no_number_is_unknown():
    base = nn.Embedding(3, 2)
    base.embed_scale = torch.ones(2)
    assert geometry_of(base) is None


def test_what_is_linear():
    from transformers.pytorch_utils import Conv1D

    assert is_linear(Conv1D(3, 2))
    assert is_transposed(Conv1D(3, 2))
    assert is_linear(nn.Linear(3, 2))
    assert not is_transposed(nn.Linear(3, 2))
    assert not is_linear(nn.Conv1d(3, 2, 1))
    assert not is_linear(nn.Embedding(3, 2))


def test_falcons_linear_layer_is_one():
    from transformers.models.falcon.modeling_falcon import FalconLinear

    base = FalconLinear(3, 2)
    assert is_linear(base)
    layer = LoraLayer(base)
    x = torch.randn(2, 3)
    assert torch.equal(layer(x), base(x))
    assert type(layer.merged_module(torch.float32)) is FalconLinear
