"""An adapter's copy of a module: the base is kept, and everything can be taken back."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.saved_module import SavedModule
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.mixed.routing import Routing
from ince.quant import Linear4bit, NF4Config

X = torch.linspace(-1, 1, 12).view(3, 4)


def linear(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(4, 2, dtype=dtype).requires_grad_(False)


def saved(base=None, *names):
    module = SavedModule(linear() if base is None else base, AdapterState(active=("a",)))
    for number, name in enumerate(names or ("a",)):
        module.add_adapter(name)
        with torch.no_grad():
            for parameter in module.copy_of(name).parameters():
                parameter += number + 1
    return module


def test_the_copy_runs_and_trains_and_the_base_does_neither():
    module = saved()
    before = {name: p.clone() for name, p in module.original_module.named_parameters()}
    y = module(X)
    torch.testing.assert_close(y, module.copy_of("a")(X))
    assert not torch.equal(y, module.original_module(X))
    y.sum().backward()
    assert all(p.grad is not None for p in module.copy_of("a").parameters())
    assert all(p.grad is None for p in module.original_module.parameters())
    assert all(torch.equal(p, before[n]) for n, p in module.original_module.named_parameters())


def test_a_fresh_copy_is_the_base():
    module = SavedModule(linear(), AdapterState(active=("a",)))
    module.add_adapter("a")
    assert module(X).equal(linear()(X))


def test_names_are_pefts():
    module = saved()
    assert set(module.state_dict()) == {
        "original_module.weight",
        "original_module.bias",
        "modules_to_save.a.weight",
        "modules_to_save.a.bias",
    }
    assert set(module.tensors("a")) == {"weight", "bias"}
    assert module.tensors("b") == {}
    assert set(module.keyed_tensors("head", "a")) == {
        "base_model.model.head.weight",
        "base_model.model.head.bias",
    }


def test_it_switches_and_is_disabled():
    module = saved(None, "a", "b")
    y = module(X)
    module.state.active = ("b",)
    assert not module(X).equal(y)
    module.state.active = ("elsewhere",)
    assert module(X).equal(linear()(X))
    module.state.active, module.state.disabled = ("a",), True
    assert module(X).equal(linear()(X))
    module.state.disabled = False
    assert module(X).equal(y)
    assert module.weight is module.copy_of("a").weight
    module.state.disabled = True
    assert module.weight is module.original_module.weight


def test_two_copies_are_not_active_together():
    module = saved(None, "a", "b")
    module.state.active = ("a", "b")
    with pytest.raises(AdapterError, match="together"):
        module(X)
    with pytest.raises(AdapterError, match="together"):
        module.check_active(("a", "b"))


def test_deleting():
    module = saved(None, "a", "b")
    module.delete_adapter("a")
    module.delete_adapter("elsewhere")
    assert module.adapter_names() == ("b",)
    assert module(X).equal(linear()(X))


def test_a_16_bit_base_is_trained_in_32_and_runs_in_16():
    module = saved(linear(torch.bfloat16))
    assert {p.dtype for p in module.copy_of("a").parameters()} == {torch.float32}
    y = module(X.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert {p.grad.dtype for p in module.copy_of("a").parameters()} == {torch.float32}


def test_a_4_bit_base_is_copied_as_floats():
    torch.manual_seed(0)
    base = Linear4bit.from_linear(nn.Linear(64, 8), NF4Config(compute_dtype="float32"))
    module = SavedModule(base, AdapterState(active=("a",)))
    module.add_adapter("a")
    x = torch.randn(3, 64)
    assert type(module.copy_of("a")) is nn.Linear
    torch.testing.assert_close(module(x), base(x))
    module(x).sum().backward()
    assert module.copy_of("a").weight.grad is not None


def test_tied_copies_have_one_weight():
    embedding = nn.Embedding(2, 4)
    head = nn.Linear(4, 2, bias=False)
    head.weight = embedding.weight
    state = AdapterState(active=("a",))
    one, other = SavedModule(embedding, state), SavedModule(head, state)
    assert one.weight_key() == other.weight_key()
    one.add_adapter("a")
    other.add_adapter("a", one)
    assert one.copy_of("a").weight is other.copy_of("a").weight
    assert one.weight_key() == other.weight_key()
    other.delete_adapter("a")
    assert one.weight_key() != other.weight_key()


def test_merging_gives_the_copy():
    module = saved()
    merged = module.merged_module(torch.float32)
    assert type(merged) is nn.Linear
    assert merged(X).equal(module(X))
    assert merged.weight is not module.copy_of("a").weight
    named = {tensor.name: tensor.compute() for tensor in module.merged_tensors("x.", torch.float32)}
    assert named["x.weight"].equal(merged.weight)
    assert named["x.bias"].equal(merged.bias)
    module.state.active = ()
    assert module.merged_module(torch.float32)(X).equal(linear()(X))


def test_rows_of_a_mixed_batch():
    module = saved(None, "a", "b")
    module.state.routing = Routing(["b", "__base__", "a"])
    y = module(X)
    module.state.routing = None
    rows = []
    for name, x in (("b", X[:1]), (None, X[1:2]), ("a", X[2:])):
        module.state.active = () if name is None else (name,)
        rows.append(module(x))
    torch.testing.assert_close(y, torch.cat(rows))


def test_around_a_layer_with_factors():
    """One adapter has factors where another has a copy."""
    layer = LoraLayer(linear(), AdapterState(active=("a",)))
    layer.add_adapter("f", AdapterSpec(1, 1, 1.0))
    with torch.no_grad():
        for tensor in layer.tensors("f").values():
            tensor.fill_(0.5)
    module = SavedModule(layer, layer.state)
    module.add_adapter("a")
    with torch.no_grad():
        module.copy_of("a").weight += 1
    assert module.adapter_names() == ("f", "a")
    assert module.get_base_layer() is layer.base_layer
    found = {}
    for name in ("a", "f"):
        module.state.active = (name,)
        found[name] = module(X)
        torch.testing.assert_close(module.merged_module(torch.float32)(X), found[name])
    module.state.routing = Routing(["f", "a", "__base__"])
    y = module(X)
    torch.testing.assert_close(y[0], found["f"][0])
    torch.testing.assert_close(y[1], found["a"][1])
    torch.testing.assert_close(y[2], linear()(X)[2])
    module.state.routing = None
    module.delete_adapter("f")
    assert isinstance(module.original_module, nn.Linear)
