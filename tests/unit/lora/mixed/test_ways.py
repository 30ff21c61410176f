"""The rule of cost, at the sizes where the answer is plain."""

from ince.lora.mixed.routing import BASE, Routing
from ince.lora.mixed.ways import MAX_STACKED_ROWS, choose_way

SIXTEEN = [f"a{i}" for i in range(16)]


def chosen(names, *, k=1, ranks=None, width=2048, itemsize=4, **options):
    plan = Routing(names).rows(len(names) * k)
    ranks = (16,) * len(plan.adapters) if ranks is None else ranks
    return choose_way(plan, ranks, width, width, itemsize=itemsize, **options)


def test_a_token_for_each_of_many_adapters_is_stacked():
    assert chosen(SIXTEEN) == "stacked"
    assert chosen(SIXTEEN[:4] * 4) == "stacked"
    assert chosen(["a"] * 16, itemsize=2) == "stacked"
    assert chosen(SIXTEEN, itemsize=2) == "stacked"


def test_prompts_are_runs():
    assert chosen(SIXTEEN, k=512) == "runs"
    assert chosen(["a"] * 16, k=512) == "runs"


def test_one_adapter_is_one_run():
    assert chosen(["a"] * 16) == "runs"  # nothing is copied or cast


def test_many_requests_in_unequal_shares_are_sorted():
    names = ["a", "b"] * 100 + SIXTEEN
    assert chosen(names) == "sorted"


def test_ranks_far_apart_are_not_padded():
    assert chosen(SIXTEEN, ranks=(256,) + (4,) * 15) != "stacked"


def test_no_stack_where_none_can_be():
    assert chosen(SIXTEEN, may_stack=False) != "stacked"
    assert chosen(["a"] * (MAX_STACKED_ROWS + 1)) != "stacked"


def test_rows_of_the_base_cost_nothing():
    assert chosen(["a", *[BASE] * 200, "b"]) == chosen(["a", BASE, "b"])


def test_the_choice_is_made_once_for_each_size():
    plan = Routing(SIXTEEN).rows(16)
    for _ in range(3):
        choose_way(plan, (16,) * 16, 64, 64, itemsize=4)
    assert len(plan.ways) == 1
    choose_way(plan, (16,) * 16, 64, 32, itemsize=4)
    assert len(plan.ways) == 2
