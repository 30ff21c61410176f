"""Rows of several adapters through a module, each with its own."""

import pytest
import torch

from ince.errors import AdapterError
from ince.lora.layers.by_rows import by_rows
from ince.lora.mixed.routing import Routing

SCALES = {None: 1, "a": 10, "b": 100}


def scaled(name, x, *rest, **kwargs):
    assert all(value.shape[0] == x.shape[0] for value in (*rest, *kwargs.values()))
    return x * SCALES[name]


def routed(names, *args, call=scaled, adapters=("a", "b"), **kwargs):
    rest = kwargs.pop("rest", None)
    return by_rows(Routing(names), adapters, call, args, kwargs, where="test", rest=rest)


def test_rows_come_back_in_their_order():
    x = torch.arange(1.0, 9).view(4, 2)
    got = routed(["b", "__base__", "a", "b"], x)
    assert got.equal(x * torch.tensor([100, 1, 10, 100]).view(4, 1))


def test_rows_that_a_model_flattened():
    x = torch.ones(6, 1)
    assert routed(["a", "__base__", "b"], x).flatten().tolist() == [10, 10, 1, 1, 100, 100]


def test_all_that_has_rows_is_divided():
    x = torch.ones(2, 3)
    got = routed(["a", "b"], x, torch.zeros(2, 1), mask=torch.zeros(2, 5))
    assert got[:, 0].tolist() == [10, 100]


def test_adapters_that_are_elsewhere_are_the_base():
    assert routed(["a", "b"], torch.ones(2, 1), adapters=("b",)).flatten().tolist() == [1, 100]


def test_one_adapter_for_all_is_one_call():
    calls = []

    def call(name, x):
        calls.append((name, len(x)))
        return x

    routed(["a", "a", "a"], torch.ones(3, 1), call=call)
    assert calls == [("a", 3)]


def test_the_rest_is_taken_as_it_is():
    x, rest = torch.ones(3, 1), torch.full((3, 1), 7.0)
    got = routed(["a", "__base__", "__base__"], x, rest=rest)
    assert got.flatten().tolist() == [10, 7, 7]
    assert routed(["__base__"] * 3, x, rest=rest) is rest


def test_several_outputs():
    got = routed(["a", "b"], torch.ones(2, 1), call=lambda name, x: (x * SCALES[name], None, [x]))
    assert got[0].flatten().tolist() == [10, 100]
    assert got[1] is None
    assert got[2][0].shape == (2, 1)


def test_gradients_reach_every_row():
    x = torch.ones(3, 1, requires_grad=True)
    routed(["b", "a", "b"], x).sum().backward()
    assert x.grad.flatten().tolist() == [100, 10, 100]


class Cache:
    """Something with a state."""


@pytest.mark.parametrize(
    ("args", "call"),
    [
        ((), scaled),
        ((torch.ones(()),), scaled),
        ((torch.ones(2, 1), Cache()), scaled),
        ((torch.ones(2, 1),), lambda name, x: x[:0]),
        ((torch.ones(2, 1),), lambda name, x: "text"),
        ((torch.ones(3, 1),), scaled),
    ],
)
def test_what_cannot_be_divided(args, call):
    with pytest.raises(AdapterError):
        routed(["a", "b"], *args, call=call)
