"""Names to rows: runs, segments, index tensors, and every way to get the names wrong."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError
from ince.lora.mixed.routing import BASE, Routing

KNOWN = ("turkish", "english", "code")
CPU = torch.device("cpu")


def test_runs_are_rows_as_they_come():
    plan = Routing(["b", "b", BASE, "a", "b"]).rows(10)
    assert plan.adapters == ("b", "a")
    assert plan.runs == ((0, 0, 4), (None, 4, 6), (1, 6, 8), (0, 8, 10))
    assert plan.segments == ((0, 0, 6), (1, 6, 8))
    assert (plan.num_adapted, plan.width, plan.is_even, plan.is_sorted) == (8, 6, False, False)


def test_one_row_each_in_order_needs_no_gather():
    plan = Routing(["c", "a", "b"]).rows(3)
    assert plan.is_sorted
    assert plan.is_even


def test_rows_of_the_base_are_in_nobodys_order():
    assert not Routing(["a", BASE]).rows(2).is_sorted
    assert not Routing(["a", "b", "a"]).rows(3).is_sorted


def test_a_layer_with_fewer_adapters_leaves_the_other_rows_to_the_base():
    plan = Routing(["a", "b", "a"]).rows(3, ("b",))
    assert plan.runs == ((None, 0, 1), (0, 1, 2), (None, 2, 3))


def test_the_order_of_adapters_is_the_layers_to_choose():
    plan = Routing(["a", "b"]).rows(2, ("b", "a"))
    assert plan.runs == ((1, 0, 1), (0, 1, 2))
    assert plan.index(CPU).rows.tolist() == [1, 0]


def test_no_rows_at_all():
    plan = Routing(["a", "b"]).rows(0)
    assert plan.num_adapted == 0


def test_plans_and_indices_are_made_once():
    routing = Routing(["a", BASE])
    plan = routing.rows(4)
    assert routing.rows(4, ("a",)) is plan
    assert plan.index(CPU) is plan.index(CPU)


@given(
    st.lists(st.sampled_from([BASE, "a", "b", "c", "d"]), min_size=1, max_size=9),
    st.integers(1, 3),
)
def test_both_orders_hold_every_row_once(names, k):
    plan = Routing(names).rows(len(names) * k)
    wanted = [name for name in names for _ in range(k)]
    seen = [
        BASE if owner is None else plan.adapters[owner]
        for owner, start, stop in plan.runs
        for _ in range(start, stop)
    ]
    assert seen == wanted
    assert all(one.adapter != other.adapter for one, other in itertools.pairwise(plan.runs))
    rows, places, padded, owners = plan.index(CPU)
    assert sorted(rows.tolist()) == [n for n, name in enumerate(wanted) if name != BASE]
    assert padded[places].tolist() == rows.tolist()
    assert [(*plan.adapters, BASE)[owner] for owner in owners.tolist()] == wanted
    for g, start, stop in plan.segments:
        mine = rows[start:stop].tolist()
        assert mine == sorted(mine)  # stable
        assert {wanted[row] for row in mine} == {plan.adapters[g]}
        assert {place // plan.width for place in places[start:stop].tolist()} == {g}


def test_names_are_checked():
    assert Routing.of(["code", BASE, "code"], known=KNOWN, num_rows=3).adapters == ("code",)
    with pytest.raises(AdapterError, match="no adapter 'turkisch'") as caught:
        Routing.of(["code", "turkisch"], known=KNOWN)
    assert "row 1" in str(caught.value)
    assert "did you mean 'turkish'?" in str(caught.value)
    with pytest.raises(AdapterError, match="did you mean '__base__'"):
        Routing.of(["__Base_"], known=KNOWN)


@pytest.mark.parametrize(
    "names, message",
    [
        ("code", "not a list"),
        (None, "not a list"),
        ({"code"}, "not a list"),
        ([], "is empty"),
        ([None], "not a string"),
        (["code", 3], "not a string"),
        ([["code"]], "not a string"),
    ],
)
def test_what_is_no_list_of_names_is_refused(names, message):
    with pytest.raises(AdapterError, match=message):
        Routing.of(names, known=KNOWN)


def test_a_name_for_each_row():
    with pytest.raises(AdapterError, match="one name for each row") as caught:
        Routing.of(["code"], known=KNOWN, num_rows=2)
    assert "got:      1" in str(caught.value)


@pytest.mark.parametrize("num_rows", [1, 5, 7])
def test_rows_that_are_no_multiple_are_refused(num_rows):
    with pytest.raises(AdapterError, match="not those of the batch") as caught:
        Routing(["a", "b", "a"]).rows(num_rows)
    assert f"{num_rows} rows" in str(caught.value)
