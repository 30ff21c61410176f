import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ince.errors import AdapterError
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.variants import ADALORA
from ince.quant import Linear4bit, NF4Config, weight_of

SIZE = st.integers(1, 9)


def spec(r, scaling=0.7, dropout=0.0):
    return AdapterSpec(r=r, alpha=1, scaling=scaling, dropout=dropout, variant="adalora")


def adapted(base, r, **values):
    layer = LoraLayer(base.requires_grad_(False))
    layer.state.active = ("default",)
    layer.add_adapter("default", spec(r, **values))
    with torch.no_grad():
        for tensor in layer.tensors("default").values():
            tensor.normal_()
    return layer


@pytest.mark.parametrize("kind", ["linear", "transposed", "4 bits"])
@given(num_in=SIZE, num_out=SIZE, r=st.integers(0, 12), seed=st.integers(0, 9))
@settings(max_examples=25)
def test_the_output_and_the_gradients_are_the_definition(kind, num_in, num_out, r, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(num_in, num_out)
    base = linear
    if kind == "transposed":
        base = Conv1D(num_out, num_in)
    elif kind == "4 bits":
        base = Linear4bit.from_linear(linear, NF4Config(compute_dtype="float32"))
    layer = adapted(base, r)
    w = base.weight.t() if kind == "transposed" else weight_of(base)
    x = torch.randn(3, num_in, requires_grad=True)
    wide = {
        suffix: tensor.detach().double().requires_grad_()
        for suffix, tensor in layer.tensors("default").items()
    }
    x_wide = x.detach().double().requires_grad_()
    update = wide["lora_B"] @ torch.diag(wide["lora_E"].flatten()) @ wide["lora_A"]
    wanted = F.linear(x_wide, w.detach().double() + 0.7 * update, base.bias.double())
    y = layer(x)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), x_wide.grad, rtol=1e-3, atol=1e-3)
    for suffix, tensor in wide.items():
        got = layer.parameter("default", suffix).grad.double()
        torch.testing.assert_close(got, tensor.grad, rtol=1e-3, atol=1e-3)
    merged = layer.merged_module(torch.float32)
    torch.testing.assert_close(merged(x), y, rtol=1e-4, atol=1e-4)


def test_a_convolution_is_adapted_as_a_matrix():
    torch.manual_seed(0)
    base = nn.Conv2d(3, 5, (2, 3), stride=2, padding=1)
    layer = adapted(base, 4)
    x = torch.randn(2, 3, 9, 8)
    assert layer.tensors("default")["lora_A"].shape == (4, 3 * 2 * 3)
    a, e, b = (layer.parameter("default", f"lora_{part}") for part in "AEB")
    change = 0.7 * (b @ (a * e)).view_as(base.weight)
    wanted = F.conv2d(x, base.weight + change, base.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.merged_module(torch.float32)(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_fresh_adapter_is_the_identity():
    base = nn.Linear(64, 48)
    layer = adapted(base, 8)
    ADALORA.start(layer, "default", identity=True)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), base(x))
    a, e, b = ADALORA.parts(layer, "default")
    assert not e.any()
    assert a.std().item() == pytest.approx(0.02, rel=0.1)
    assert b.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "base", [nn.Embedding(4, 3), nn.Conv1d(2, 3, 1), nn.Conv2d(2, 4, 1, groups=2)]
)
def test_layers_that_peft_has_no_adalora_for_are_refused(base):
    with pytest.raises(AdapterError, match=r"AdaLoRA adapts|takes no"):
        LoraLayer(base).add_adapter("default", spec(2))
