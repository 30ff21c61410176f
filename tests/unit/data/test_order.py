import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.order import epoch_order


@given(num_items=st.integers(0, 200), seed=st.integers(), epoch=st.integers(0, 50))
def test_an_order_is_a_permutation_and_stable(num_items, seed, epoch):
    order = epoch_order(num_items, seed, epoch)
    assert sorted(order) == list(range(num_items))
    assert order == epoch_order(num_items, seed, epoch)


def test_the_order_is_the_same_on_every_platform_and_in_every_version():
    assert epoch_order(8, 7, 0) == [1, 3, 5, 6, 4, 0, 2, 7]


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_places_are_used_evenly():
    sums = [sum(epoch_order(10, seed, 0)[place] for seed in range(400)) for place in range(10)]
    assert all(3.8 < total / 400 < 5.2 for total in sums)


@given(num_items=st.integers(0, 100), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 50))
def test_an_order_is_that_of_the_digests(num_items, seed, epoch):
    def key(index):
        return hashlib.sha256(f"ince-order/1:{seed}:{epoch}:{index}".encode()).digest(), index

    assert epoch_order(num_items, seed, epoch) == sorted(range(num_items), key=key)


@pytest.mark.parametrize("alike", [0, 8, 16, 31, 32])
def test_digests_that_begin_alike_are_ordered_by_the_rest(monkeypatch, alike):
    class Digest:
        def __init__(self, data):
            tail = bytes(~byte & 255 for byte in data[-1:]) * 32
            self.data = (b"\x80" * alike + tail)[:32]

        def digest(self):
            return self.data

    monkeypatch.setattr("ince.data.order.hashlib.sha256", Digest)
    expected = [*range(10)] if alike == 32 else [*reversed(range(10))]
    assert epoch_order(10, 0, 0) == expected
