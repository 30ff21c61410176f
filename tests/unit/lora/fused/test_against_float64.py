"""Every fused path against float64: outputs and gradients, over 16 and 4 bits, with dropout.

The definition is written out here in operations that autograd knows, over the weights as they
are expanded. Both sides drop the same inputs: which of them stay is drawn as bools, in the order
of the layers, whatever the type of the numbers.
"""

import pytest
import torch
from torch.nn import functional as F

from ince.lora.fused import gated_mlp, joint_linear
from ince.lora.layers.linear import LinearGeometry

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
SCALING = 2.0  # of `make_layer`
# Norm of the difference, over the norm.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.03}
D, WIDE = 64, 96


class Exact:
    """A layer in float64, with factors that ask for gradients."""

    def __init__(self, layer, dtype, p):
        self.weight = LinearGeometry(layer.base_layer).frozen_weight(dtype).double()
        self.bias = layer.base_layer.bias
        self.factors = [
            layer.parameter("default", f"lora_{name}.weight").detach().double().requires_grad_()
            for name in "AB"
        ]
        self.p = p

    def __call__(self, x):
        seen = x
        if self.p > 0:
            _, keep = torch.native_dropout(torch.ones(x.shape), self.p, train=True)
            seen = x * keep / (1 - self.p)
        a_RD, b_OR = self.factors
        bias = None if self.bias is None else self.bias.double()
        return F.linear(x, self.weight, bias) + SCALING * (seen @ a_RD.t()) @ b_OR.t()


def single(layers, _):
    def compute(x):
        y = layers[0](x)
        if isinstance(layers[0], torch.nn.Module):
            assert y.grad_fn.name() == "FusedLoraBackward"
        return y

    return compute


def joint(layers, _):
    if isinstance(layers[0], Exact):
        return lambda x: tuple(layer(x) for layer in layers)
    return lambda x: joint_linear(x, layers)


def gated(layers, activation):
    gate, up, down = layers
    if isinstance(gate, Exact):
        return lambda x: down(ACTIVATIONS[activation](gate(x)) * up(x))
    return lambda x: gated_mlp(x, gate, up, down, activation)


PATHS = {
    "single": (single, [(D, WIDE)], None),
    "joint": (joint, [(D, 96), (D, 32), (D, 32)], None),
    **{f"gated {name}": (gated, [(D, WIDE), (D, WIDE), (WIDE, D)], name) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_outputs_and_gradients_are_those_of_float64(make_layer, path, dtype, p, packed):
    way, sizes, activation = PATHS[path]
    layers = [
        make_layer(*size, p=p, bias=True, dtype=dtype, packed=packed, seed=i)
        for i, size in enumerate(sizes)
    ]
    torch.manual_seed(5)
    x = torch.randn(11, D).to(dtype)
    exact = [Exact(layer, dtype, p) for layer in layers]
    factors = [f for layer in layers for f in layer.parameters() if f.requires_grad]
    truth = found_from(way(exact, activation), x.double(), [f for e in exact for f in e.factors])
    found = found_from(way(layers, activation), x, factors)
    for a, b in zip(truth, found, strict=True):
        assert float((a - b.double()).norm() / a.norm()) < BOUNDS[dtype]


def found_from(compute, x, factors):
    """Outputs of `compute`, and the gradients of x and the factors, for drawn weights."""
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    outputs = compute(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(2)
    loss = sum((y * torch.randn(y.shape).to(y.dtype)).sum() for y in outputs)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, [x, *factors])]
