"""Dense layers of an open engine, and what is left of them afterwards."""

import pytest
import torch
from torch import nn

from ince.serve.engine import products
from ince.serve.engine.products import few_row_products


class Odd(nn.Linear):
    def forward(self, input):  # noqa: A002
        return super().forward(input) + 1


def test_layers_multiply_alike_and_are_given_back(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8, bias=False), Odd(8, 8))
    calls = []
    monkeypatch.setattr(
        products,
        "dense_linear",
        lambda x, *rest: calls.append(len(x)) or torch.nn.functional.linear(x, *rest),
    )
    few, many = torch.randn(3, 8), torch.randn(products._MOST_ROWS + 1, 8)
    with torch.no_grad():
        expected = model(few), model(many)
        hook = model[0].register_forward_hook(lambda *_: calls.append("hook"))
        with few_row_products(model):
            found = model(few), model(many)
        hook.remove()
        assert calls == [3, "hook", 3, "hook"]
        torch.testing.assert_close(found, expected)
        assert all("forward" not in vars(layer) for layer in model)
        assert torch.equal(model(few), expected[0])
    assert len(calls) == 4


def test_they_are_given_back_after_an_error():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(RuntimeError, match="of a user"), few_row_products(model):
        raise RuntimeError("of a user")
    assert "forward" not in vars(model[0])


def test_a_layer_that_has_a_forward_of_its_own_keeps_it():
    layer = nn.Linear(8, 8)
    layer.forward = own = lambda x: x
    with few_row_products(nn.Sequential(layer)):
        assert layer.forward is own
    assert layer.forward is own


def test_a_type_that_is_not_known_is_left_alone():
    layer = nn.Linear(8, 8).double()
    with few_row_products(layer):
        assert layer(torch.zeros(1, 8).double()).dtype == torch.float64
