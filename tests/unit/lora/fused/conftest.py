"""Layers that the fused products take, and how they compute apart."""

import pytest
import torch
from torch import nn

from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.quant import Linear4bit, NF4Config


@pytest.fixture(scope="session")
def make_layer():
    """A function that makes a frozen linear layer, with an adapter or without."""

    def make(num_in, num_out, *, r=4, p=0.0, bias=False, dtype=torch.float32, packed=False, seed=0):
        torch.manual_seed(seed)
        plain = nn.Linear(num_in, num_out, bias=bias).to(dtype).requires_grad_(False)
        base = plain
        if packed:
            name = str(dtype).removeprefix("torch.")
            base = Linear4bit.from_linear(plain, NF4Config(compute_dtype=name))
        if r == 0:
            return base
        layer = LoraLayer(base)
        spec = AdapterSpec(r=r, alpha=2 * r, scaling=2.0, dropout=p)
        layer.add_adapter("default", spec)
        with torch.no_grad():
            for tensor in layer.tensors("default").values():
                # float64 throughout where the base is.
                tensor.data = torch.randn(tensor.shape).to(
                    dtype if dtype == torch.float64 else torch.float32
                )
        layer.state.active = ("default",)
        return layer.train()

    return make


@pytest.fixture(scope="session")
def gradients():
    """A function that gives what `compute` makes of x and the gradients of x and all factors."""

    def collect(compute, x, layers, seed=1):
        x = x.detach().clone().requires_grad_()
        factors = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        torch.manual_seed(seed)
        outputs = compute(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(seed + 1)
        weights = [torch.randn(y.shape).to(y.dtype) for y in outputs]
        loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
        found = torch.autograd.grad(loss, [x, *factors])
        return [*(y.detach() for y in outputs), *found]

    return collect


@pytest.fixture(scope="session")
def same():
    """A function that asserts that tensors agree, in parts of the largest value of each."""

    def check(own, ours, tolerance):
        for a, b in zip(own, ours, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            scale = a.double().abs().max().clamp(min=1e-12)
            assert float((a.double() - b.double()).abs().max() / scale) <= tolerance

    return check
