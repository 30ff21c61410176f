"""Factors of a parameter that its module multiplies with itself."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora.layers.parameter_layer import ParameterLayer, parameter_factor_shapes
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.mixed.routing import Routing

E, IN, OUT = 3, 4, 6


class Experts(nn.Module):
    """Two layers per expert; each row goes to one."""

    def __init__(self, is_transposed=False):
        super().__init__()
        torch.manual_seed(0)
        self.is_transposed = is_transposed
        up, down = ((E, IN, OUT), (E, OUT, IN)) if is_transposed else ((E, OUT, IN), (E, IN, OUT))
        self.up = nn.Parameter(torch.randn(up))
        self.scale = nn.Parameter(torch.randn(E))
        self.down = nn.Parameter(torch.randn(down))

    def forward(self, x, expert_ids):
        y = torch.zeros_like(x)
        for e in expert_ids.unique():
            rows = expert_ids == e
            if self.is_transposed:
                y[rows] = (x[rows] @ self.up[e]).tanh() @ self.down[e]
            else:
                inside = nn.functional.linear(x[rows], self.up[e]).tanh()
                y[rows] = nn.functional.linear(inside, self.down[e])
        return y * self.scale[expert_ids].unsqueeze(1)


X = torch.linspace(-1, 1, 5 * IN).view(5, IN)
IDS = torch.tensor([0, 2, 2, 0, 1])


def layer(*, is_transposed=False, dropout=0.0, **adapters):
    """Adapters by name: the parameters that each adapts."""
    state = AdapterState(active=("a",))
    base = Experts(is_transposed).requires_grad_(False)
    nest = ParameterLayer(ParameterLayer(base, "up", state), "down", state)
    for number, (name, parameters) in enumerate((adapters or {"a": ["up", "down"]}).items()):
        for each in nest.nest():
            if each.parameter_name in parameters:
                spec = AdapterSpec(2 + number, 1, 0.5, dropout)
                each.add_adapter(name, spec)
        with torch.no_grad():
            for tensor in nest.tensors(name).values():
                tensor.normal_()
    return nest


def change(nest, parameter, name):
    """s · B A for each expert, from the layout that PEFT's files have."""
    part = next(each for each in nest.nest() if each.parameter_name == parameter)
    a, b = part.factor_parameters(name)
    r = part.specs[name].r
    by_expert = [0.5 * b.view(b.shape[0], r, E)[:, :, e] @ a[e * r : (e + 1) * r] for e in range(E)]
    whole = torch.stack(by_expert)
    return whole.mT if nest.is_flipped else whole


def by_hand(nest, *names):
    base = Experts(nest.owner.is_transposed)
    with torch.no_grad():
        for part in nest.nest():
            for name in names:
                if name in part.specs:
                    parameter = getattr(base, part.parameter_name)
                    parameter += change(nest, part.parameter_name, name)
    return base(X, IDS)


def test_shapes_are_pefts():
    shapes = parameter_factor_shapes((E, OUT, IN), 2, is_transposed=False)
    assert shapes == {"lora_A.weight": (E * 2, IN), "lora_B.weight": (OUT, 2 * E)}
    assert parameter_factor_shapes((E, IN, OUT), 2, is_transposed=True) == shapes
    matrix = {"lora_A.weight": (2, IN), "lora_B.weight": (OUT, 2)}
    assert parameter_factor_shapes((OUT, IN), 2, is_transposed=False) == matrix
    assert parameter_factor_shapes((OUT, IN), 2, is_transposed=True) == matrix


@pytest.mark.parametrize("is_transposed", [False, True])
def test_it_runs_with_the_update(is_transposed):
    nest = layer(is_transposed=is_transposed)
    torch.testing.assert_close(nest(X, IDS), by_hand(nest, "a"))
    nest(X, IDS).sum().backward()
    assert all(tensor.grad is not None for tensor in nest.tensors("a").values())
    assert all(parameter.grad is None for parameter in nest.owner.parameters())


def test_names_are_pefts():
    nest = layer()
    assert {name for name, p in nest.named_parameters() if p.requires_grad} == {
        "lora_A.a.weight",
        "lora_B.a.weight",
        "base_layer.lora_A.a.weight",
        "base_layer.lora_B.a.weight",
    }
    assert list(nest.tensors("a")) == [
        "lora_A.weight",
        "lora_B.weight",
        "base_layer.lora_A.weight",
        "base_layer.lora_B.weight",
    ]


def test_an_adapter_of_one_parameter_has_plain_names_whichever_it_is():
    nest = layer(a=["up", "down"], b=["up"], c=["down"])
    assert set(nest.tensors("b")) == set(nest.tensors("c")) == {"lora_A.weight", "lora_B.weight"}
    assert nest.tensors("b")["lora_A.weight"].shape == (E * 3, IN)
    assert nest.tensors("c")["lora_A.weight"].shape == (E * 4, OUT)
    assert nest.tensors("d") == {}


def test_switching_several_disabling_deleting():
    nest = layer(a=["up", "down"], b=["up"], c=["down"])
    plain = nest.owner(X, IDS)
    for active in (("a",), ("b",), ("c",), ("a", "b"), ("b", "c", "a"), ()):
        nest.state.active = active
        torch.testing.assert_close(nest(X, IDS), by_hand(nest, *active))
    nest.state.active, nest.state.disabled = ("a",), True
    assert nest(X, IDS).equal(plain)
    nest.state.disabled = False
    nest.delete_adapter("a")
    assert nest.adapter_names() == ("c", "b")
    nest.delete_adapter("b")
    assert nest.base_layer is nest.owner
    nest.state.active = ("c",)
    torch.testing.assert_close(nest(X, IDS), by_hand(nest, "c"))


@pytest.mark.parametrize("is_transposed", [False, True])
def test_merging(is_transposed):
    nest = layer(is_transposed=is_transposed, a=["up", "down"], b=["up"])
    for active in (("a",), ("a", "b"), ("b",), ()):
        nest.state.active = active
        merged = nest.merged_module(torch.float32)
        torch.testing.assert_close(merged(X, IDS), nest(X, IDS))
        assert not any(p.requires_grad for p in merged.parameters())
        named = {t.name: t.compute() for t in nest.merged_tensors("x.", torch.float32)}
        assert list(named) == ["x.up", "x.scale", "x.down"]
        assert all(named[f"x.{name}"].equal(p) for name, p in merged.named_parameters())


def test_a_merge_that_overflows():
    nest = layer()
    with torch.no_grad():
        nest.tensors("a")["lora_B.weight"].fill_(1e30)
    with pytest.raises(AdapterError, match="not finite"):
        nest.merged_module(torch.float16)


def test_rows_of_a_mixed_batch():
    nest = layer(a=["up", "down"], b=["up"])
    names = ["b", "a", "__base__", "b", "a"]
    nest.state.routing = Routing(names)
    y = nest(X, IDS)
    nest.state.routing = None
    for row, name in enumerate(names):
        nest.state.active = () if name == "__base__" else (name,)
        torch.testing.assert_close(y[row], nest(X, IDS)[row])


def test_dropout_in_training_alone():
    nest = layer(dropout=0.5)
    assert nest.eval()(X, IDS).equal(nest(X, IDS))
    nest.train()
    torch.manual_seed(0)
    y = nest(X, IDS)
    assert not torch.equal(y, nest(X, IDS))
    torch.manual_seed(0)
    assert nest(X, IDS).equal(y)
    nest.state.disabled = True
    assert nest(X, IDS).equal(nest.owner(X, IDS))


def test_no_second_stack_is_made_or_kept():
    """What is saved for the backward pass is as small as the factors and the rows."""
    nest = layer()
    own = {p.untyped_storage().data_ptr() for p in nest.owner.parameters()}
    kept = []

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape == nest.owner.up.shape:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nest(X, IDS).sum()
    assert not kept


def test_it_is_as_it_was_when_the_forward_raises():
    nest = layer()
    y = nest(X, IDS)
    with pytest.raises(AttributeError):
        nest(X, None)
    assert nest(X, IDS).equal(y)
    assert isinstance(nest.owner.up, nn.Parameter)


class Dense(nn.Module):
    """Uses its parameter otherwise than by expert."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(E, OUT, IN))

    def forward(self, x):
        return torch.einsum("eoi,ni->neo", self.up, x)


def test_compiled():
    dense = ParameterLayer(Dense().requires_grad_(False), "up", AdapterState(active=("a",)))
    dense.add_adapter("a", AdapterSpec(2, 1, 0.5))
    with torch.no_grad():
        for tensor in dense.tensors("a").values():
            tensor.normal_()
    wanted = dense(X)
    assert not wanted.equal(dense.owner(X))
    compiled = torch.compile(dense, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), wanted)
