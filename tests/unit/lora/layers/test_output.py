"""What an adapted layer computes: the definition, whatever the kind, the variant and the size."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from ince.lora.layers.spec import AdapterSpec
from ince.quant import Linear4bit, NF4Config

# Of torch itself, for bases that are drawn here.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

LOOSE = {"rtol": 2e-4, "atol": 2e-4}


def dora(r=2, dropout=0.0):
    return AdapterSpec(r, 2, 1.5, dropout, "dora")


def trained(layer):
    return {n: p for n, p in layer.named_parameters() if p.requires_grad}


@given(data=st.data())
@settings(max_examples=60)
def test_the_output_is_the_definition(some, definition, data):
    case = data.draw(some())
    layer = case.layer()
    expected = definition(layer, case.x)
    torch.testing.assert_close(layer(case.x).double(), expected, **LOOSE)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(case.x).double(), expected, **LOOSE)


@given(data=st.data())
@settings(max_examples=40)
def test_gradients_are_those_of_the_definition(some, definition, data):
    case = data.draw(some())
    layer, x = case.layer(), case.x
    wide = {
        name: {s: t.detach().double().requires_grad_() for s, t in layer.tensors(name).items()}
        for name in layer.adapter_names()
    }
    x_wide = x.clone()
    if x.is_floating_point():
        x, x_wide = x.clone().requires_grad_(), x.double().requires_grad_()
    y = layer(x)
    given_grad = torch.randn_like(y)
    y.backward(given_grad)
    definition(layer, x_wide, wide).backward(given_grad.double())
    for name, tensors in wide.items():
        for suffix, tensor in tensors.items():
            got = layer.parameter(name, suffix).grad.double()
            padding = getattr(case.base, "padding_idx", None)
            if suffix == "lora_embedding_A" and padding is not None:
                # A padded row has no gradient; through the others nothing changes.
                assert not got[:, padding].any()
                tensor.grad[:, padding] = 0
            torch.testing.assert_close(got, tensor.grad, rtol=1e-3, atol=1e-3)
    if x.is_floating_point():
        torch.testing.assert_close(x.grad.double(), x_wide.grad, rtol=1e-3, atol=1e-3)


@given(data=st.data())
@settings(max_examples=30)
def test_nothing_changes_the_base(some, data):
    case = data.draw(some())
    before = {k: t.clone() for k, t in case.base.state_dict().items()}
    layer = case.layer()
    for mode in (True, False):
        layer.train(mode)
        layer(case.x).sum().backward()
        with torch.no_grad():
            layer(case.x)
    layer.merged_module(torch.float32)
    after = layer.base_layer.state_dict()
    assert all(torch.equal(after[k], t) for k, t in before.items())
    assert all(p.grad is None for p in layer.base_layer.parameters())


@given(data=st.data())
@settings(max_examples=25)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_come_near_the_definition(some, definition, dtype, data):
    case = data.draw(some(dtype=dtype))
    layer = case.layer()
    y = layer(case.x)
    assert y.dtype == dtype
    expected = definition(layer, case.x)
    size = max(1.0, expected.abs().max().item())
    # Where an update all but cancels the weight, DoRA stretches what rounding left of it.
    turns = [layer.factors(name).magnitude for name in layer.adapter_names()]
    size *= max([1.0, *(turn.abs().max().item() for turn in turns if turn is not None)])
    assert (y.double() - expected).abs().max() < 0.15 * size
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in trained(layer).values())


def test_in_sixteen_bits_the_magnitude_is_no_coarser_than_the_output(make):
    torch.manual_seed(0)
    base = nn.Linear(64, 64, dtype=torch.bfloat16)
    layer = make(base, dora())
    with torch.no_grad():
        layer.parameter("0", "lora_B.weight").zero_()
        norm = base.weight.float().norm(dim=1)
        # The nearest of bfloat16 is 1.0234.
        layer.parameter("0", "lora_magnitude_vector").copy_(norm * 1.02)
        x = torch.randn(4000, 64, dtype=torch.bfloat16)
        own = base.bias.float()
        wanted = (base(x).float() - own) * 1.02 + own
        got = layer(x).float()
        plain = base(x).float()
    share = ((got - plain) * (wanted - plain)).sum() / (wanted - plain).square().sum()
    assert share.item() == pytest.approx(1.0, abs=0.02)


def test_each_of_several_doras_turns_the_base(make):
    layer = make(nn.Linear(5, 4), dora(), dora(3))
    x = torch.randn(3, 5)
    base = layer.base_layer(x)
    layer.state.active = ("0", "1")
    both = layer(x)
    layer.state.active = ("1", "0")
    torch.testing.assert_close(layer(x), both)
    changes = []
    for name in ("0", "1"):
        layer.state.active = (name,)
        changes.append(layer(x) - base)
    torch.testing.assert_close(both, base + sum(changes))


def test_dora_and_the_base_see_the_same_dropped_input(make):
    base = nn.Linear(6, 3, bias=False)
    layer = make(base, dora(dropout=0.5)).train()
    x = torch.ones(5000, 6)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    dropped = torch.dropout(x, 0.5, train=True)
    f = layer.factors("0")
    update = 1.5 * (dropped @ f.a_RD.t()) @ f.b_OR.t()
    expected = base(x) + (f.magnitude - 1) * base(dropped) + f.magnitude * update
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        torch.manual_seed(1)
        torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.eval()(x)[0], y.mean(0), rtol=0, atol=0.1)


def test_ids_are_not_dropped(make):
    layer = make(nn.Embedding(9, 4), AdapterSpec(2, 2, 1.0, dropout=0.9)).train()
    ids = torch.arange(9)
    assert torch.equal(layer(ids), layer.eval()(ids))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_checkpointed_layer_has_the_same_gradients(make, use_reentrant, training, dropout):
    layer = make(nn.Linear(6, 5), dora(dropout=dropout)).train(training)
    x = torch.randn(4, 6, requires_grad=True)
    grads = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
        layer.zero_grad()
        x.grad = None
        torch.manual_seed(3)
        run(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in trained(layer).values())])
    assert len(grads[0]) == 4
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


BASES = {
    "linear": (lambda: nn.Linear(8, 6), lambda: torch.randn(3, 8)),
    "transposed": (lambda: Conv1D(6, 8), lambda: torch.randn(3, 8)),
    "4 bits": (
        lambda: Linear4bit.from_linear(nn.Linear(8, 6), NF4Config(compute_dtype="float32")),
        lambda: torch.randn(3, 8),
    ),
    "embedding": (lambda: nn.Embedding(9, 6), lambda: torch.arange(5)),
    "convolution": (lambda: nn.Conv1d(4, 6, 3), lambda: torch.randn(2, 4, 7)),
}


# Torch's compiler does to every autograd function what torch warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "variant", "number"),
    # Every pair of two of them: a compilation takes over a second.
    [
        (kind, variant, 1 + (i + j) % 2)
        for i, kind in enumerate(BASES)
        for j, variant in enumerate(("lora", "dora"))
    ],
)
def test_it_compiles_to_one_graph(make, kind, variant, number):
    torch.manual_seed(0)
    base, inputs = (each() for each in BASES[kind])
    layer = make(base, *[AdapterSpec(2, 2, 1.5, variant=variant)] * number)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected, got = [], []
    for results, run in ((expected, layer), (got, compiled)):
        layer.zero_grad()
        y = run(inputs)
        y.square().sum().backward()
        results += [y, *(p.grad for p in trained(layer).values())]
        with torch.no_grad():
            results.append(run(inputs))
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_under_autocast_the_norm_is_still_taken_in_full_precision(make):
    layer = make(nn.Linear(64, 32), dora())
    c = layer.factors("0").magnitude
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.factors("0").magnitude, c)
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16


def test_a_copy_computes_the_same_and_apart(make):
    layer = make(nn.Linear(5, 4), dora()).eval()
    x = torch.randn(2, 5)
    with torch.no_grad():
        before = layer(x)
        other = copy.deepcopy(layer)
        assert torch.equal(other(x), before)
        other.parameter("0", "lora_A.weight").mul_(2)
        assert not torch.equal(other(x), before)
        assert torch.equal(layer(x), before)
