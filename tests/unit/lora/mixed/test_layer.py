"""A mixed batch through an adapted layer is what each row gets on its own."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from ince.errors import AdapterError
from ince.lora.layers.layer import LoraLayer
from ince.lora.mixed import BASE, Routing, mixed_forward
from ince.quant import Linear4bit, NF4Config

MIX = ["a0", "a1", BASE, "a2", "a0", "a1"]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.5}


def close(got, wanted):
    limit = TOLERANCES[wanted.dtype]
    torch.testing.assert_close(got, wanted, atol=limit, rtol=limit / 4)


def route(layer, names):
    layer.state.routing = Routing.of(names, known=[*layer.specs, "elsewhere"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from([BASE, "a0", "a1", "a2", "elsewhere"]), min_size=1, max_size=9),
    ranks=st.tuples(*[st.integers(1, 12)] * 3),
    doras=st.sets(st.integers(0, 2)),
    biased=st.sets(st.integers(0, 2)),
    width=st.integers(1, 20),
    has_bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)),
    shape=st.sampled_from(["rows", "sequences", "flattened", "beams"]),
    seed=st.integers(0, 99),
)
def test_equals_row_by_row(
    make_layer, row_by_row, names, ranks, doras, biased, width, has_bias, dtype, shape, seed
):
    torch.manual_seed(seed)
    base = nn.Linear(12, width, bias=has_bias)
    layer = make_layer(base, ranks=ranks, doras=doras, biased=biased - doras, seed=seed)
    layer.base_layer.to(dtype)
    if dtype == torch.float64:
        layer.double()
    num = len(names)
    leading = {
        "rows": (num,),
        "sequences": (num, 3),
        "flattened": (num * 3,),
        "beams": (num * 2, 2),
    }
    x = torch.randn(*leading[shape], 12, dtype=dtype)
    wanted = row_by_row(layer, x, names)
    with torch.enable_grad():
        route(layer, names)
        close(layer(x.requires_grad_()).detach(), wanted)  # the definition
    with torch.no_grad():
        for _ in range(2):  # the making of a stack, the stack
            close(layer(x), wanted)
    with torch.inference_mode():
        route(layer, names)
        close(layer(x.detach()), wanted)


LAYERS = {
    "conv1d": lambda: Conv1D(10, 12),
    "nf4": lambda: Linear4bit.from_linear(
        nn.Linear(64, 10, dtype=torch.bfloat16), NF4Config(compute_dtype="float32")
    ),
    "embedding": lambda: nn.Embedding(12, 10),
    "conv2d": lambda: nn.Conv2d(12, 10, 3),
    "conv1": lambda: nn.Conv1d(12, 10, 2, stride=2),
}
INPUTS = {
    "conv1d": lambda n: torch.randn(n, 3, 12),
    "nf4": lambda n: torch.randn(n, 3, 64),
    "embedding": lambda n: torch.randint(12, (n, 5)),
    "conv2d": lambda n: torch.randn(n, 12, 5, 5),
    "conv1": lambda n: torch.randn(n, 12, 6),
}


@pytest.mark.parametrize("doras", [(), (1,)])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(make_layer, row_by_row, kind, doras):
    torch.manual_seed(0)
    layer = make_layer(LAYERS[kind](), ranks=(2, 3, 4), doras=doras)
    x = INPUTS[kind](6)
    wanted = row_by_row(layer, x, MIX)
    route(layer, MIX)
    with torch.no_grad():
        for _ in range(2):
            close(layer(x), wanted)


def test_decoding_copies_nothing_after_the_first_step(make_layer, monkeypatch):
    layer = make_layer()
    route(layer, MIX)
    x = torch.randn(6, 1, 12)
    with torch.no_grad():
        wanted = layer(x)
        assert layer.stacks.num_bytes > 0
        monkeypatch.setattr(LoraLayer, "factors", None)  # not even looked at
        close(layer(x), wanted)
        route(layer, MIX[::-1])  # the same adapters, in another order
        close(layer(x.flip(0)).flip(0), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_batch_gives_the_same_bits_whatever_came_before(make_layer, dtype):
    layer = make_layer(nn.Linear(64, 48))
    layer.base_layer.to(dtype)
    x = torch.randn(3, 64, dtype=dtype)
    names = ["a2", "a0", "a1"]
    with torch.no_grad():
        route(layer, names)
        wanted = layer(x)
        assert torch.equal(layer(x), wanted)
        for earlier in (["a0", "a1", "a2"], ["a1", "a1", "a1"], ["a2", "a0", "a1"]):
            layer.stacks.clear()
            route(layer, earlier)
            layer(x)
            route(layer, names)
            assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.lora_B["a1"].weight.mul_(3),
        lambda layer: layer.lora_B["a1"].weight.data.mul_(3),
        lambda layer: setattr(
            layer.lora_A["a1"], "weight", nn.Parameter(torch.ones(4, 12), requires_grad=False)
        ),
        lambda layer: layer.set_start("a1", torch.ones(4, 12), torch.ones(10, 4)),
        lambda layer: layer.base_layer.weight.mul_(3),
        lambda layer: layer.base_layer.bias.add_(1),
    ],
)
def test_a_change_between_calls_is_followed(make_layer, row_by_row, change):
    layer = make_layer(doras=(0,))
    x = torch.randn(6, 12)
    with torch.no_grad():
        for _ in range(2):
            route(layer, MIX)
            before = layer(x)
        assert layer.stacks.num_bytes > 0
        change(layer)
        wanted = row_by_row(layer, x, MIX)
        assert not torch.allclose(before, wanted)
        for _ in range(2):
            route(layer, MIX)
            close(layer(x), wanted)


def test_a_changed_parameter_is_followed_within_a_call(make_layer, row_by_row):
    layer = make_layer()
    route(layer, MIX)
    x = torch.randn(6, 12)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        layer.lora_A["a0"].weight.mul_(3)
        close(layer(x), row_by_row(layer, x, MIX))


def test_training_steps_between_mixed_batches(make_layer, row_by_row):
    layer = make_layer()
    trained = [layer.lora_A["a1"].weight, layer.lora_B["a1"].weight]
    optimizer = torch.optim.AdamW([t.requires_grad_() for t in trained], lr=0.1, fused=True)
    x = torch.randn(6, 12)
    for _ in range(4):
        layer.state.active, layer.state.routing = ("a1",), None
        layer(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = row_by_row(layer, x, MIX)
            for _ in range(2):
                route(layer, MIX)
                close(layer(x), wanted)


def test_gradients_are_those_of_each_row(make_layer, row_by_row):
    layer = make_layer(nn.Linear(12, 10).double(), doras=(0,), biased=(1,)).double()
    leaves = [t for name in layer.specs for t in layer.tensors(name).values()]
    x = torch.randn(6, 2, 12, dtype=torch.float64, requires_grad=True)
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = torch.autograd.grad(row_by_row(layer, x, MIX).square().sum(), [x, *leaves])
    route(layer, MIX)
    got = torch.autograd.grad(layer(x).square().sum(), [x, *leaves])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_factors_that_train_get_gradients_though_a_stack_is_there(make_layer):
    layer = make_layer()
    x = torch.randn(6, 12)
    for _ in range(2):
        route(layer, MIX)
        assert not layer(x).requires_grad  # nothing trains: quick with gradients on, too
    assert layer.stacks.num_bytes > 0
    layer.lora_B["a1"].weight.requires_grad_()
    assert layer(x).requires_grad
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_dropout_in_training_only(make_layer):
    layer = make_layer(dropout=0.5)
    route(layer, MIX)
    x = torch.randn(6, 12)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
        layer.train()
        assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("k", [1, 50])
def test_larger_batches_are_not_stacked(make_layer, row_by_row, k):
    layer = make_layer(ranks=(2, 3, 8), doras=(0,), biased=(1,))
    names = MIX * 50 if k == 1 else MIX
    x = torch.randn(len(names), k, 12) if k > 1 else torch.randn(len(names), 12)
    with torch.no_grad():
        wanted = row_by_row(layer, x, names)
        route(layer, names)
        close(layer(x), wanted)
    assert layer.stacks.num_bytes == 0


def test_all_rows_of_one_adapter(make_layer):
    layer = make_layer()
    for x in (torch.randn(6, 12), torch.randn(6, 100, 12)):
        layer.state.routing, layer.state.active = None, ("a1",)
        with torch.no_grad():
            wanted = layer(x)
            route(layer, ["a1"] * 6)
            for _ in range(2):
                close(layer(x), wanted)


def test_rows_without_an_adapter_here_are_the_base(make_layer):
    layer = make_layer()
    x = torch.randn(3, 12)
    for names in ([BASE] * 3, ["elsewhere", BASE, "elsewhere"]):
        route(layer, names)
        assert torch.equal(layer(x), layer.base_layer(x))


def test_an_output_of_the_base_may_be_given(make_layer):
    layer = make_layer()
    route(layer, MIX)
    x = torch.randn(6, 12)
    with torch.no_grad():
        wanted = layer(x)
        given = layer.base_layer(x)
        close(mixed_forward(layer, x, layer.state.routing, base_output=given), wanted)


def test_autocast_and_other_precisions_follow_the_definition(make_layer, row_by_row):
    layer = make_layer(doras=(2,))
    x = torch.randn(6, 12)
    with torch.no_grad():
        wanted = row_by_row(layer, x, MIX)
        route(layer, MIX)
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                torch.testing.assert_close(layer(x).float(), wanted, atol=0.3, rtol=0.05)


def test_inputs_that_are_views(make_layer, row_by_row):
    layer = make_layer()
    x = torch.randn(12, 6, 3).permute(1, 2, 0)
    with torch.no_grad():
        wanted = row_by_row(layer, x, MIX)
        kept = x.clone()
        route(layer, MIX)
        for _ in range(2):
            close(layer(x), wanted)
        assert torch.equal(x, kept)


@pytest.mark.parametrize("shape", [(5, 12), (1, 6, 12), (12,)])
def test_rows_that_are_not_the_batch_are_refused(make_layer, shape):
    layer = make_layer()
    route(layer, MIX)
    with pytest.raises(AdapterError, match="not those of the batch"):
        layer(torch.randn(shape))


def test_a_batch_of_nothing(make_layer):
    layer = make_layer()
    route(layer, MIX)
    assert layer(torch.randn(0, 12)).shape == (0, 10)
    assert layer(torch.randn(6, 0, 12)).shape == (6, 0, 10)


def test_a_copy_of_the_layer_is_its_own(make_layer, row_by_row):
    layer = make_layer()
    x = torch.randn(6, 12)
    with torch.no_grad():
        for _ in range(2):
            route(layer, MIX)
            layer(x)
        other = copy.deepcopy(layer)
        other.lora_B["a0"].weight.mul_(5)
        route(other, MIX)
        for _ in range(2):
            close(other(x), row_by_row(other, x, MIX))


def test_a_layer_loaded_in_inference_mode(make_layer, row_by_row):
    with torch.inference_mode():
        layer = make_layer()
        x = torch.randn(6, 12)
        wanted = row_by_row(layer, x, MIX)
        route(layer, MIX)
        for _ in range(2):
            close(layer(x), wanted)
        assert layer.stacks.num_bytes == 0
        layer.lora_B["a0"].weight.mul_(5)
        close(layer(x), row_by_row(layer, x, MIX))
