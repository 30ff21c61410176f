"""Every way to compute a mixed product equals the definition, and the definition is right."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ince.lora.factors import Factors
from ince.lora.layers.linear import LinearGeometry
from ince.lora.mixed.product import add_runs, add_sorted, add_stacked, mixed_reference
from ince.lora.mixed.routing import BASE, Routing
from ince.lora.mixed.stack import Stack

NAMES = [BASE, "a", "b", "c", "d"]
# Of a result of size about 10, in products of some ten terms.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.3}


def stacked(x, y, factors, plan, bias):
    add_stacked(x, y, Stack.of(plan.adapters, factors, bias, x.dtype), plan)


WAYS = {"stacked": stacked, "runs": add_runs, "sorted": add_sorted}


def draw_case(names, k, ranks, *, has_bias, d=7, o=6, seed=0, dtype=torch.float32):
    """A layer, its input and output, and factors of which some have bias and magnitude."""
    torch.manual_seed(seed)
    base = nn.Linear(d, o, bias=has_bias).to(dtype).requires_grad_(False)
    plan = Routing(names).rows(len(names) * k)
    factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    factors = [
        Factors(
            torch.randn(r, d, dtype=factor_dtype),
            torch.randn(o, r, dtype=factor_dtype),
            0.5 + g,
            torch.randn(o, dtype=factor_dtype) if ranks[1] % 2 and g % 2 else None,
            1 + torch.rand(o, dtype=factor_dtype) if ranks[0] % 2 and g % 3 == 0 else None,
        )
        for g, r in enumerate(ranks[: len(plan.adapters)])
    ]
    x = torch.randn(plan.num_rows, d, dtype=dtype)
    return base, plan, factors, x


def by_hand(base, plan, factors, x):
    """The formula, in float64, a row at a time."""
    weight = base.weight.double()
    bias = torch.zeros(weight.shape[0]) if base.bias is None else base.bias.double()
    rows = []
    for adapter, start, stop in plan.runs:
        for row in x[start:stop].double():
            y = weight @ row
            if adapter is not None:
                f = factors[adapter]
                y = y + f.s * (f.b_OR.double() @ (f.a_RD.double() @ row))
                y = y if f.bias is None else y + f.s * f.bias.double()
                y = y if f.magnitude is None else y * f.magnitude.double()
            rows.append(y + bias)
    return torch.stack(rows)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@settings(max_examples=40)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=8),
    k=st.integers(1, 3),
    ranks=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(way, dtype, names, k, ranks, has_bias, seed):
    base, plan, factors, x = draw_case(names, k, ranks, has_bias=has_bias, seed=seed, dtype=dtype)
    if not plan.adapters:
        return
    wanted = by_hand(base, plan, factors, x)
    limits = {"atol": TOLERANCES[dtype], "rtol": TOLERANCES[dtype] / 10}
    y = base(x)
    reference = mixed_reference(x, y.clone(), factors, plan, LinearGeometry(base), base=base)
    torch.testing.assert_close(reference.double(), wanted, **limits)
    WAYS[way](x, y, factors, plan, base.bias)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, **limits)


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_the_base_are_its_own_to_the_bit(way):
    base, plan, factors, x = draw_case(["a", BASE, "b", BASE], 2, [3, 3, 3, 3], has_bias=True)
    y = base(x)
    WAYS[way](x, y, factors, plan, base.bias)
    for adapter, start, stop in plan.runs:
        if adapter is None:
            assert torch.equal(y[start:stop], base(x)[start:stop])


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_is_not_finite_stays_alone(way):
    base, plan, factors, x = draw_case(["a", "b", "a", "a"], 1, [3, 2, 1, 1], has_bias=False)
    wanted = by_hand(base, plan, factors, x).float()
    x[0] = float("nan")  # the row that fills up the stack
    y = base(x)
    WAYS[way](x, y, factors, plan, base.bias)
    assert y[0].isnan().all()
    torch.testing.assert_close(y[1:], wanted[1:], atol=1e-4, rtol=1e-4)


def test_gradients_of_the_definition():
    base, plan, factors, x = draw_case(
        ["a", BASE, "b", "a"], 1, [3, 1, 1, 1], has_bias=True, dtype=torch.float64
    )
    assert factors[0].magnitude is not None
    assert factors[1].bias is not None

    def run(x, a0, b0, c0, a1, b1, bias1):
        made = [Factors(a0, b0, 0.5, None, c0), Factors(a1, b1, 1.5, bias1, None)]
        return mixed_reference(x, base(x), made, plan, LinearGeometry(base), base=base)

    one, other = factors
    leaves = (x, one.a_RD, one.b_OR, one.magnitude, other.a_RD, other.b_OR, other.bias)
    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves])


def test_dropout_is_each_adapters_own():
    base, plan, _, _ = draw_case(["a", "b", BASE], 200, [2, 1, 1, 1], has_bias=False)
    x = torch.ones(plan.num_rows, 7)
    same = Factors(torch.ones(1, 7), torch.ones(6, 1), 1.0)
    torch.manual_seed(0)
    y = mixed_reference(
        x, base(x), [same, same], plan, LinearGeometry(base), base=base, dropout=[0.5, 0.0]
    )
    added = y - base(x)
    assert added[:200].std() > 0.5
    torch.testing.assert_close(added[200:400], torch.full((200, 6), 7.0))
    assert not added[400:].any()


def test_dora_sees_the_base_through_its_dropout():
    base = nn.Linear(7, 6)
    plan = Routing(["a"]).rows(1)
    calls = []

    def spied(x):
        calls.append(x)
        return base(x)

    f = Factors(torch.randn(2, 7), torch.randn(6, 2), 1.0, None, torch.full((6,), 3.0))
    x = torch.ones(1, 7)
    torch.manual_seed(0)
    y = mixed_reference(x, base(x), [f], plan, LinearGeometry(base), base=spied, dropout=[0.5])
    (seen,) = calls
    assert set(seen.flatten().tolist()) == {0.0, 2.0}
    update = (seen @ f.a_RD.t()) @ f.b_OR.t()
    turned = seen @ base.weight.t() + update
    torch.testing.assert_close(y, base(x) + update + 2 * turned)
