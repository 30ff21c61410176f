"""Adapted layers of every kind, and what they are by definition: one dense weight, in float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.quant import Linear4bit, NF4Config, weight_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FORMULAS = (F.conv1d, F.conv2d, F.conv3d)
KINDS = ("linear", "4 bits", "transposed", "embedding", "convolution")


class Scaled(nn.Embedding):
    """As Gemma's."""

    embed_scale = 3.0

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


def adapt(base, *specs, active=True, seed=0):
    """`base` frozen, with an adapter "0", "1", … for each of `specs`, of random values."""
    layer = LoraLayer(base.requires_grad_(False))
    torch.manual_seed(seed)
    for number, spec in enumerate(specs):
        layer.add_adapter(str(number), spec)
        with torch.no_grad():
            for suffix, tensor in layer.tensors(str(number)).items():
                tensor.normal_(std=0.3)
                if "magnitude" in suffix:
                    tensor.abs_().add_(0.5)
    layer.state.active = tuple(layer.specs) if active else ()
    return layer


def by_definition(layer, x, parameters=None):
    """``base`` with its weight replaced by Σ, per adapter, of c · (W + s · B A); in float64.

    Args:
        layer: adapted.
        x: its input.
        parameters: by adapter and suffix, instead of the layer's own.
    """
    base, geometry = layer.base_layer, layer.geometry
    weight = stored_weight(base).double()
    total = weight
    bias = None if geometry.bias is None else geometry.bias.double()
    for name in layer.state.active:
        tensors = layer.tensors(name) if parameters is None else parameters[name]
        tensors = {suffix.split(".weight")[0]: t.double() for suffix, t in tensors.items()}
        change = layer.scaling[name] * update(base, tensors)
        c = torch.ones(())
        if "lora_magnitude_vector" in tensors:
            out = 0 if isinstance(base, (nn.Linear, Linear4bit, *CONVOLUTIONS)) else 1
            others = [d for d in range(weight.ndim) if d != out]
            norm = torch.linalg.vector_norm((weight + change).detach(), dim=others, keepdim=True)
            c = tensors["lora_magnitude_vector"].view(norm.shape) / norm
        total = total + c * (weight + change) - weight
        if "lora_B.bias" in tensors:
            added = layer.scaling[name] * c.flatten() * tensors["lora_B.bias"]
            bias = added if bias is None else bias + added
    return apply(base, x if not x.is_floating_point() else x.double(), total, bias)


def stored_weight(base):
    return weight_of(base) if isinstance(base, Linear4bit) else base.weight.detach()


def update(base, tensors):
    """B A in the layout of the base's weight."""
    if isinstance(base, nn.Embedding):
        return (tensors["lora_embedding_B"] @ tensors["lora_embedding_A"]).t()
    a, b = tensors["lora_A"], tensors["lora_B"]
    if isinstance(base, CONVOLUTIONS):
        return torch.einsum("or,ri...->oi...", b.flatten(1), a)
    return (b @ a).t() if isinstance(base, Conv1D) else b @ a


def apply(base, x, weight, bias):
    if isinstance(base, nn.Embedding):
        # Padding stops the gradient of A alone: B learns from every row, as in PEFT.
        return F.embedding(x, weight) * getattr(base, "embed_scale", 1.0)
    if isinstance(base, CONVOLUTIONS):
        place = len(base.kernel_size) - 1
        padding = base.padding
        if base.padding_mode != "zeros":
            x = F.pad(x, [p for p in reversed(padding) for _ in range(2)], mode=base.padding_mode)
            padding = 0
        return FORMULAS[place](x, weight, bias, base.stride, padding, base.dilation, base.groups)
    return F.linear(x, weight.t() if isinstance(base, Conv1D) else weight, bias)


@dataclass
class Case:
    """A base, an input, and specs of adapters for it."""

    base: nn.Module
    x: torch.Tensor
    specs: tuple[AdapterSpec, ...]

    def layer(self):
        return adapt(self.base, *self.specs)


@st.composite
def cases(draw: Any, *, variants=("lora", "dora"), dtype=torch.float32):
    """Any kind of layer of any small size, with one to three adapters."""
    size = st.integers(1, 7)
    torch.manual_seed(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(KINDS))
    num_in, num_out, has_bias = draw(size), draw(size), draw(st.booleans())
    lead = draw(st.sampled_from([(), (3,), (2, 3), (1, 2, 2)]))
    if kind == "embedding":
        padding = draw(st.sampled_from([None, 0]))
        base = draw(st.sampled_from([nn.Embedding, Scaled]))(num_in, num_out, padding, dtype=dtype)
        x = torch.randint(0, num_in, lead)
    elif kind == "convolution":
        base, x = draw(convolutions(num_in, num_out, has_bias, dtype))
    else:
        x = torch.randn(*lead, num_in, dtype=dtype)
        if kind == "transposed":
            base = Conv1D(num_out, num_in).to(dtype)
            nn.init.normal_(base.bias)
        else:
            base = nn.Linear(num_in, num_out, has_bias, dtype=dtype)
        if kind == "4 bits":
            config = NF4Config(
                compute_dtype=str(dtype).removeprefix("torch."), double_quant=draw(st.booleans())
            )
            base = Linear4bit.from_linear(base, config)
    specs = tuple(
        AdapterSpec(
            r=draw(st.integers(1, 9)),
            alpha=1,
            scaling=draw(st.sampled_from([0.25, 1.0, 1.5])),
            variant=draw(st.sampled_from(variants)),
            bias=kind != "embedding" and draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    return Case(base, x, specs)


@st.composite
def convolutions(draw: Any, num_in, num_out, has_bias, dtype):
    num_space = draw(st.integers(1, 3))
    each = st.integers(1, 3)
    sizes = [tuple(draw(each) for _ in range(num_space)) for _ in range(3)]
    kernel, stride, dilation = sizes
    mode = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    padding = draw(st.sampled_from([0, 1, "same"])) if mode == "zeros" else 1
    base = CONVOLUTIONS[num_space - 1](
        num_in,
        num_out,
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        bias=has_bias,
        padding_mode=mode,
        dtype=dtype,
    )
    batch = draw(st.sampled_from([(), (2,)]))
    return base, torch.randn(*batch, num_in, *(7,) * num_space, dtype=dtype)


@pytest.fixture(scope="session")
def make():
    """`adapt`."""
    return adapt


@pytest.fixture(scope="session")
def definition():
    """`by_definition`."""
    return by_definition


@pytest.fixture(scope="session")
def some():
    """`cases`, a strategy of hypothesis."""
    return cases


@pytest.fixture(scope="session")
def scaled():
    """`Scaled`."""
    return Scaled
