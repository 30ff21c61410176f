import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ince.errors import AdapterError
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.projections import Projections
from ince.lora.layers.spec import AdapterSpec
from ince.quant import Linear4bit, NF4Config, weight_of

SIZE = st.integers(1, 9)


def spec(r, dropout=0.0):
    return AdapterSpec(r=r, alpha=r, scaling=1.0, dropout=dropout, variant="vera")


def adapted(base, r, *, wider=0, dtype=torch.float32, dropout=0.0):
    """A layer whose shared matrices are `wider` than it needs, with random vectors."""
    layer = LoraLayer(base.requires_grad_(False))
    layer.state.active = ("default",)
    sizes = layer.geometry.in_features + wider, layer.geometry.out_features + wider
    layer.state.shared["default"] = Projections(r, *sizes, seed=3, is_saved=True)
    layer.add_adapter("default", spec(r, dropout))
    with torch.no_grad():
        for tensor in layer.tensors("default").values():
            tensor.normal_()
    return layer


@pytest.mark.parametrize("kind", ["linear", "transposed", "4 bits"])
@given(
    num_in=SIZE, num_out=SIZE, r=st.integers(1, 20), wider=st.integers(0, 3), seed=st.integers(0, 9)
)
@settings(max_examples=25)
def test_the_output_and_the_gradients_are_the_definition(kind, num_in, num_out, r, wider, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(num_in, num_out)
    base = linear
    if kind == "transposed":
        base = Conv1D(num_out, num_in)
    elif kind == "4 bits":
        base = Linear4bit.from_linear(linear, NF4Config(compute_dtype="float32"))
    layer = adapted(base, r, wider=wider)
    w = base.weight.t() if kind == "transposed" else weight_of(base)
    x = torch.randn(3, num_in, requires_grad=True)
    a, b = (t.double() for t in layer.state.shared["default"].own())
    vectors = {
        suffix: tensor.detach().double().requires_grad_()
        for suffix, tensor in layer.tensors("default").items()
    }
    x_wide = x.detach().double().requires_grad_()
    low = vectors["vera_lambda_d"] * (x_wide @ a[:, :num_in].t())
    wanted = F.linear(x_wide, w.detach().double(), base.bias.double())
    wanted = wanted + vectors["vera_lambda_b"] * (low @ b[:num_out].t())
    y = layer(x)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), x_wide.grad, rtol=1e-3, atol=1e-3)
    for suffix, vector in vectors.items():
        got = layer.parameter("default", suffix).grad.double()
        torch.testing.assert_close(got, vector.grad, rtol=1e-3, atol=1e-3)
    merged = layer.merged_module(torch.float32)
    torch.testing.assert_close(merged(x), y, rtol=1e-4, atol=1e-4)


def test_a_training_step_keeps_no_input_and_no_dense_factor():
    layer = adapted(nn.Linear(96, 64), 4)
    x = torch.randn(50, 96, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(x)
    assert not any(t.numel() == x.numel() for t in saved)
    assert max(t.numel() for t in saved) <= max(96 * 4, 50 * 4)


def test_a_fresh_adapter_is_the_identity_and_the_shared_matrices_do_not_train():
    base = nn.Linear(5, 6)
    layer = adapted(base, 3)
    from ince.lora.variants import VERA

    VERA.start(layer, "default", d_initial=0.25, identity=True)
    x = torch.randn(2, 5)
    torch.testing.assert_close(layer(x), base(x), rtol=0, atol=0)
    assert set(layer.tensors("default")["vera_lambda_d"].tolist()) == {0.25}
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "vera_lambda_b.default",
        "vera_lambda_d.default",
    }


def test_dropout_is_of_training_alone():
    layer = adapted(nn.Linear(40, 8), 3, dropout=0.5)
    x = torch.randn(4, 40)
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_no_other_layer_than_a_linear_one_is_adapted():
    for base in (nn.Embedding(4, 3), nn.Conv2d(2, 3, 1)):
        with pytest.raises(AdapterError, match="no linear layer, and VeRA"):
            LoraLayer(base).add_adapter("default", spec(2))
