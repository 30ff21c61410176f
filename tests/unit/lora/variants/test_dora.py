"""DoRA: the norm, in parts and in any precision; when it is kept and when it must not be."""

import pytest
import torch
from torch import nn

from ince.lora.factors import Factors
from ince.lora.layers import geometry as geometry_module
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.variants import VARIANTS
from ince.lora.variants import dora as dora_module
from ince.lora.variants.dora import row_norms
from ince.quant import Linear4bit, NF4Config

KEY = "lora_magnitude_vector"
DORA = AdapterSpec(2, 2, 1.5, variant="dora")


def adapt(base, *, trainable=True):
    layer = LoraLayer(base.requires_grad_(False))
    layer.add_adapter("a", DORA)
    with torch.no_grad():
        for tensor in layer.tensors("a").values():
            tensor.normal_()
    VARIANTS["dora"].finish(layer, "a")
    for tensor in layer.tensors("a").values():
        tensor.requires_grad_(trainable)
    layer.state.active = ("a",)
    return layer


@pytest.fixture
def count(monkeypatch):
    """How often norms were taken."""
    calls = []
    monkeypatch.setattr(
        dora_module, "row_norms", lambda *args: (calls.append(1), row_norms(*args))[1]
    )
    return calls


@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (nn.Linear(4, 3), (3,)),
        (nn.Embedding(5, 3), (3,)),
        (nn.Conv1d(4, 3, 2), (1, 3, 1)),
        (nn.Conv2d(4, 3, 2), (1, 3, 1, 1)),
        (nn.Conv3d(4, 3, 2), (1, 3, 1, 1, 1)),
    ],
)
def test_shape_of_the_magnitude(base, shape):
    assert VARIANTS["dora"].shapes(geometry_of(base), DORA)[KEY] == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_is_the_base_to_the_bit(dtype):
    layer = adapt(nn.Linear(6, 4, dtype=dtype))
    with torch.no_grad():
        layer.parameter("a", "lora_B.weight").zero_()
        VARIANTS["dora"].finish(layer, "a")
        x = torch.randn(3, 6, dtype=dtype)
        assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("width", [5, 48, 64, 96])
@pytest.mark.parametrize("double_quant", [True, False])
def test_a_4_bit_weight_is_seen_in_parts(monkeypatch, width, double_quant):
    torch.manual_seed(0)
    base = Linear4bit.from_linear(
        nn.Linear(width, 300), NF4Config(double_quant=double_quant, compute_dtype="float32")
    )
    factors = Factors(torch.randn(2, width), torch.randn(300, 2), 0.5)
    whole = torch.addmm(base.dequantize(), factors.b_OR, factors.a_RD, alpha=0.5)
    sizes = []
    for limit in (1, 4096, 1 << 22):
        parts = list(base.row_blocks(torch.float32, limit))
        sizes.append(max(part.numel() for _, part in parts))
        assert torch.equal(torch.cat([part for _, part in parts]), base.dequantize())
    assert sizes[0] <= 64 * width
    assert sizes[-1] == 300 * width
    torch.testing.assert_close(row_norms(geometry_of(base), factors), whole.norm(dim=1))


@pytest.mark.parametrize(
    "base", [nn.Linear(9, 30), nn.Embedding(30, 9), nn.Conv2d(3, 20, 2)], ids=str
)
def test_parts_give_the_norm_of_the_whole(monkeypatch, base):
    geometry = geometry_of(base)
    factors = Factors(
        torch.randn(2, geometry.in_features), torch.randn(geometry.out_features, 2), 0.5
    )
    monkeypatch.setattr(geometry_module, "BLOCK_WEIGHTS", 40)
    assert len(list(geometry.blocks())) > 3
    whole = geometry.weight_matrix(torch.float32) + factors.delta()
    torch.testing.assert_close(row_norms(geometry, factors), whole.norm(dim=1))


def test_an_output_without_weights_stays_finite():
    layer = adapt(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        layer.base_layer.weight[1] = 0
        layer.parameter("a", "lora_B.weight").zero_()
        VARIANTS["dora"].finish(layer, "a")
    y = layer(torch.randn(2, 4))
    y.sum().backward()
    assert not y[:, 1].any()
    for tensor in layer.tensors("a").values():
        assert bool(tensor.grad.isfinite().all())


def test_while_it_trains_the_norm_is_taken_anew(count):
    layer, x = adapt(nn.Linear(6, 4)), torch.randn(3, 6)
    for mode in (True, False):
        layer.train(mode)
        for _ in range(2):
            # As some optimizers write: no trace is left of it.
            layer.parameter("a", "lora_A.weight").data.mul_(1.5)
            got = layer(x).detach()
            fresh = adapt(nn.Linear(6, 4))
            fresh.load_state_dict(layer.state_dict())
            torch.testing.assert_close(got, fresh(x))
    assert len(count) > 4


def test_when_serving_it_is_taken_once(count):
    layer, x = adapt(nn.Linear(6, 4), trainable=False).eval(), torch.randn(3, 6)
    count.clear()
    for _ in range(3):
        layer(x)
    with torch.inference_mode():
        layer(x)
    assert len(count) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.parameter("a", "lora_A.weight").mul_(2),
        lambda layer: layer.parameter("a", KEY).mul_(2),
        lambda layer: layer.base_layer.weight.mul_(2),
        lambda layer: setattr(layer.base_layer, "weight", nn.Parameter(torch.ones(4, 6))),
        lambda layer: setattr(layer, "base_layer", nn.Linear(6, 4)),
        lambda layer: setattr(layer.parameter("a", KEY), "data", torch.ones(4)),
        lambda layer: layer.to(torch.float64),
        lambda layer: layer.train().parameter("a", KEY).data.mul_(2) is layer.eval(),
        lambda layer: layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_changes_is_seen(change, mode):
    layer = adapt(nn.Linear(6, 4)).eval()
    with mode():
        x = torch.randn(3, 6)
        layer(x)
    with torch.no_grad():
        change(layer)
    with mode():
        x = x.to(layer.base_layer.weight.dtype)
        fresh = adapt(nn.Linear(6, 4)).to(x.dtype).eval()
        fresh.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x), fresh(x))


def test_what_was_kept_in_inference_mode_trains_later():
    layer, x = adapt(nn.Linear(6, 4)).eval(), torch.randn(3, 6)
    with torch.inference_mode():
        y = layer(x.clone())
    layer(x).sum().backward()
    assert layer.parameter("a", KEY).grad is not None
    torch.testing.assert_close(layer(x), y.clone())


def test_a_layer_that_was_loaded_in_inference_mode_works():
    with torch.inference_mode():
        layer = adapt(nn.Linear(6, 4), trainable=False).eval()
        x = torch.randn(3, 6)
        y = layer(x)
        layer.parameter("a", KEY).mul_(2)
        assert not torch.equal(layer(x), y)


def test_a_start_that_is_taken_off_counts_in_the_norm():
    layer = adapt(nn.Linear(6, 4))
    start = [t.detach().clone() for t in layer.factor_parameters("a")]
    layer.set_start("a", *start)
    VARIANTS["dora"].finish(layer, "a")
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    with torch.no_grad():
        layer.parameter("a", "lora_A.weight").mul_(2)
        weight = layer.base_layer.weight
        turned = weight + 1.5 * start[1] @ start[0]
        c = layer.parameter("a", KEY) / turned.norm(dim=1)
        expected = x @ (c[:, None] * turned).t() + layer.base_layer.bias
        torch.testing.assert_close(layer(x), expected)


def test_steps_of_an_optimizer_lower_the_loss():
    torch.manual_seed(0)
    layer = adapt(nn.Linear(8, 8))
    x, wanted = torch.randn(64, 8), torch.randn(64, 8)
    optimizer = torch.optim.AdamW(layer.tensors("a").values(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        merged = layer.eval().merged_module(torch.float32)
        torch.testing.assert_close(merged(x), layer(x), rtol=1e-4, atol=1e-5)
