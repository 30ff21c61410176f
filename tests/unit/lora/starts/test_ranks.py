"""Ranks go to the components that explain most, and every rank is given."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.lora.starts.ranks import distribute_ranks


def test_the_richer_layer_gets_more():
    shares = {"rich": torch.tensor([0.5, 0.3, 0.2]), "poor": torch.tensor([0.4, 0.1, 0.01])}
    assert distribute_ranks(shares, 3) == {"rich": 2, "poor": 1}
    assert distribute_ranks(shares, 1) == {"rich": 1, "poor": 0}


def test_equal_shares_are_dealt_out_in_turn():
    shares = dict.fromkeys(("q", "k", "v"), torch.tensor([0.5, 0.5, 0.5]))
    assert distribute_ranks(shares, 4) == {"q": 2, "k": 1, "v": 1}


@given(st.lists(st.lists(st.floats(0, 1), max_size=5), min_size=1, max_size=5), st.integers(0, 30))
def test_the_budget_is_spent_within_limits(rows, budget):
    shares = {str(i): torch.tensor(sorted(row, reverse=True)) for i, row in enumerate(rows)}
    ranks = distribute_ranks(shares, budget)
    assert sum(ranks.values()) == min(budget, sum(map(len, rows)))
    assert all(0 <= ranks[name] <= len(shares[name]) for name in shares)
    taken = [float(s) for name in shares for s in shares[name][: ranks[name]]]
    left = [float(s) for name in shares for s in shares[name][ranks[name] :]]
    assert not taken or not left or min(taken) >= max(left)
