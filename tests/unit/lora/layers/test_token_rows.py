"""Rows of an embedding or a head that are an adapter's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ince.errors import AdapterError
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.layers.token_rows import TokenRows
from ince.lora.mixed.routing import Routing
from ince.quant import Linear4bit, NF4Config

IDS = torch.tensor([[7, 0, 3], [3, 9, 1]])
H = torch.linspace(-1, 1, 16).view(2, 2, 4)


class Scaled(nn.Embedding):
    """As Gemma's, which scales what it finds."""

    def forward(self, x):
        return super().forward(x) * 3


def embedding(kind=nn.Embedding, **values):
    torch.manual_seed(0)
    return kind(10, 4, **values).requires_grad_(False)


def head(bias=False):
    torch.manual_seed(0)
    return nn.Linear(4, 10, bias=bias).requires_grad_(False)


def rows(base, tokens=(7, 3), **others):
    module = TokenRows(base, AdapterState(active=("a",)))
    for name, ids in {"a": tokens, **others}.items():
        module.add_adapter(name, ids)
        with torch.no_grad():
            module.rows_of(name).add_(torch.randn(len(ids), 4))
    return module


def weight_of(module, *names):
    weight = module.get_base_layer().weight.clone()
    for name in names:
        weight[list(module.tokens[name])] = module.rows_of(name)
    return weight


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
def test_lookups_find_the_rows(kind):
    module = rows(embedding(kind))
    scale = 3 if kind is Scaled else 1
    wanted = F.embedding(IDS, weight_of(module, "a")) * scale
    assert module(IDS).equal(wanted)
    module(IDS).sum().backward()
    grad = module.rows_of("a").grad
    assert grad[0].eq(scale).all()  # once
    assert grad[1].eq(2 * scale).all()  # twice


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_of_the_rows(bias):
    module = rows(head(bias))
    wanted = F.linear(H, weight_of(module, "a"), module.get_base_layer().bias)
    torch.testing.assert_close(module(H), wanted)
    x = H.clone().requires_grad_()
    module(x).square().sum().backward()
    other = H.clone().requires_grad_()
    F.linear(other, weight_of(module, "a"), module.get_base_layer().bias).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert module.rows_of("a").grad is not None


def test_a_fresh_adapter_is_the_base():
    module = TokenRows(embedding(), AdapterState(active=("a",)))
    module.add_adapter("a", (1, 3))
    assert module(IDS).equal(embedding()(IDS))


def test_names_are_pefts():
    module = rows(embedding())
    assert set(module.state_dict()) == {
        "token_adapter.base_layer.weight",
        "token_adapter.trainable_tokens_delta.a",
    }
    (key,) = module.keyed_tensors("model.embed", "a")
    assert key == "base_model.model.model.embed.token_adapter.trainable_tokens_delta"
    assert module.num_embeddings == 10
    assert module.weight is module.base_layer.weight


def test_a_padding_token_takes_no_gradient():
    module = rows(embedding(padding_idx=3))
    module(IDS).sum().backward()
    assert module.rows_of("a").grad[0].eq(1).all()
    assert not module.rows_of("a").grad[1].any()


def test_a_tied_head_follows_and_has_no_tensors_of_its_own():
    base, output = embedding(), head()
    output.weight = base.weight
    state = AdapterState(active=("a",))
    one, other = TokenRows(base, state), TokenRows(output, state)
    one.add_adapter("a", (7, 3))
    other.add_adapter("a", (7, 3), one)
    with torch.no_grad():
        one.rows_of("a").add_(1)
    torch.testing.assert_close(other(H), F.linear(H, weight_of(one, "a")))
    assert other.tensors("a") == {}
    assert other.adapter_names() == ("a",)
    assert one.weight_key() == other.weight_key()
    assert torch.equal(
        one.merged_module(torch.float32).weight, other.merged_module(torch.float32).weight
    )
    other.delete_adapter("a")
    assert other.adapter_names() == ()
    assert one.weight_key() != other.weight_key()


def test_switching_disabling_deleting():
    module = rows(embedding(), b=(1,))
    y = module(IDS)
    module.state.disabled = True
    assert module(IDS).equal(embedding()(IDS))
    module.state.disabled = False
    module.state.active = ("b",)
    assert module(IDS).equal(F.embedding(IDS, weight_of(module, "b")))
    module.state.active = ("a", "b")
    assert module(IDS).equal(F.embedding(IDS, weight_of(module, "a", "b")))
    module.delete_adapter("b")
    assert module(IDS).equal(y)
    assert module.adapter_names() == ("a",)


def test_one_token_of_two_adapters():
    module = rows(embedding(), b=(3, 1))
    module.state.active = ("a", "b")
    with pytest.raises(AdapterError, match="token 3 of a and b"):
        module.check_active(("a", "b"))
    with pytest.raises(AdapterError, match="together"):
        module(IDS)


@pytest.mark.parametrize("make", [embedding, head])
def test_merging(make):
    module = rows(make(), b=(1,))
    x = IDS if make is embedding else H
    for active in (("a",), ("a", "b"), ()):
        module.state.active = active
        torch.testing.assert_close(module.merged_module(torch.float32)(x), module(x))
        (tensor,) = module.merged_tensors("", torch.float32)
        assert tensor.compute().equal(weight_of(module, *active))


@pytest.mark.parametrize("make", [embedding, head])
def test_rows_of_a_mixed_batch(make):
    module = rows(make(), b=(3, 0))
    x = IDS if make is embedding else H
    module.state.routing = Routing(["b", "a"])
    y = module(x)
    module.state.routing = Routing(["__base__", "b"])
    z = module(x)
    module.state.routing = None
    found = {}
    for name in ("a", "b"):
        module.state.active = (name,)
        found[name] = module(x)
    torch.testing.assert_close(y, torch.stack([found["b"][0], found["a"][1]]))
    torch.testing.assert_close(z, torch.stack([make()(x)[0], found["b"][1]]))


@pytest.mark.parametrize("make", [embedding, head])
def test_together_with_factors(make):
    """The weight with the rows, plus the low-rank update."""
    layer = LoraLayer(make(), AdapterState(active=("a",)))
    layer.add_adapter("a", AdapterSpec(2, 2, 1.0))
    with torch.no_grad():
        for tensor in layer.tensors("a").values():
            tensor.normal_()
    module = TokenRows(layer, layer.state)
    module.add_adapter("a", (7, 3))
    with torch.no_grad():
        module.rows_of("a").add_(1)
    x = IDS if make is embedding else H
    whole = weight_of(module, "a") + layer.get_delta_weight("a")
    wanted = F.embedding(x, whole) if make is embedding else F.linear(x, whole)
    torch.testing.assert_close(module(x), wanted)
    torch.testing.assert_close(module.merged_module(torch.float32)(x), wanted)
    module.state.routing = Routing(["a", "a"])
    torch.testing.assert_close(module(x), wanted)
    assert len(module.tensors("a")) == 3


def test_over_a_4_bit_head():
    torch.manual_seed(0)
    base = Linear4bit.from_linear(nn.Linear(64, 10), NF4Config(compute_dtype="float32"))
    module = TokenRows(base, AdapterState(active=("a",)))
    module.add_adapter("a", (2, 5))
    x = torch.randn(3, 64)
    torch.testing.assert_close(module(x), base(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        module.rows_of("a").zero_()
    assert module(x)[:, [2, 5]].equal(base.bias[[2, 5]].expand(3, 2))
