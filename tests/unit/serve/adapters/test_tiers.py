"""Slots and memory are never over-committed, and an adapter in use stays, whatever comes."""

from collections import OrderedDict
from concurrent.futures import Executor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ince.errors import AdapterError, ConfigError, CorruptFileError
from ince.lora import LoraConfig
from ince.serve.adapters import AdapterTiers, PackedAdapter

NUM_SLOTS = 2
BUDGET = 10
# Values of each adapter; "g" is larger than the whole memory, "x" cannot be loaded.
SIZES = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 10, "g": 11}
BROKEN = "x"
DIGESTS = [*SIZES, BROKEN]


class Later(Executor):
    """Loads wait here until the test lets them run."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, call, /, *arguments, **_):  # type: ignore[override]
        self.waiting.append(lambda: call(*arguments))

    def run(self, number: int = 0) -> None:
        self.waiting.pop(number)()


def packed(digest: str) -> PackedAdapter:
    if digest == BROKEN:
        raise CorruptFileError("it is broken")
    table = np.full((1, 5), -1, dtype=np.int64)
    block = torch.zeros(SIZES[digest], dtype=torch.uint8)
    return PackedAdapter(digest, block, table, 1, LoraConfig())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tiers_of(later: Executor, **options) -> AdapterTiers:
    model: Any = SimpleNamespace(
        device=torch.device("cpu"), steps=SimpleNamespace(forget=lambda: None)
    )
    source: Any = SimpleNamespace()
    settings = {"num_slots": NUM_SLOTS, "memory_bytes": BUDGET, "load": packed} | options
    return AdapterTiers(model, source, loaders=later, **settings)


digests = st.sampled_from(DIGESTS)


class Tiers(RuleBasedStateMachine):
    """Against a model in a few dictionaries: who is held, and in which order slots were used."""

    def __init__(self) -> None:
        super().__init__()
        self.later, self.clock = Later(), Clock()
        self.tiers = tiers_of(self.later, clock=self.clock)
        self.users: dict[str, int] = {}
        self.slots: OrderedDict[str, None] = OrderedDict()

    @rule(digest=digests)
    def prefetch(self, digest):
        before, num = self.tiers.state(digest), len(self.later.waiting)
        self.tiers.prefetch(digest)
        started = len(self.later.waiting) - num
        assert started == (before == "disk" and self.tiers.state(digest) == "loading")

    @precondition(lambda self: self.later.waiting)
    @rule(data=st.data())
    def a_load_ends(self, data):
        self.later.run(data.draw(st.integers(0, len(self.later.waiting) - 1)))
        # Memory was made: adapters without users may have lost their slots.
        for digest in list(self.slots):
            if digest not in self.tiers.stats().device:
                assert not self.users.get(digest)
                del self.slots[digest]

    @rule(digest=digests)
    def acquire(self, digest):
        state = self.tiers.state(digest)
        held = self.tiers.acquire(digest)
        if state == "device":
            assert held is not None
        elif state == "memory":
            unused = [each for each in self.slots if not self.users.get(each)]
            is_full = len(self.slots) == NUM_SLOTS
            assert (held is None) == (is_full and not unused)
            if held is not None and is_full:
                del self.slots[unused[0]]  # the least recently used
        else:
            assert held is None
        if held is not None:
            assert held.digest == digest
            self.users[digest] = self.users.get(digest, 0) + 1
            self.slots[digest] = None
            self.slots.move_to_end(digest)

    @rule(digest=digests)
    def release(self, digest):
        if not self.users.get(digest):
            with pytest.raises(AdapterError, match="nobody holds"):
                self.tiers.release(digest)
            return
        self.tiers.release(digest)
        self.users[digest] -= 1
        if self.tiers.state(digest) != "device":  # it was to leave
            assert not self.users[digest]
            del self.slots[digest]

    @rule(digest=digests)
    def forget(self, digest):
        self.tiers.forget(digest)
        assert self.tiers.state(digest) in (
            ("device",) if self.users.get(digest) else ("disk", "loading")
        )
        if not self.users.get(digest):
            self.slots.pop(digest, None)
            assert digest not in self.tiers.stats().memory

    @rule(seconds=st.sampled_from([1.0, 31.0]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @invariant()
    def nothing_is_over_committed(self):
        stats = self.tiers.stats()
        assert list(stats.device) == list(self.slots)
        assert len(stats.device) <= NUM_SLOTS
        assert stats.memory_bytes <= BUDGET
        assert stats.memory_bytes == sum(SIZES[each] for each in stats.memory)
        assert set(stats.device) <= set(stats.memory)
        assert stats.num_loading == len(self.later.waiting)
        for digest, num in self.users.items():
            assert not num or digest in stats.device
        for digest in DIGESTS:
            assert (self.tiers.error(digest) is None) == (self.tiers.state(digest) != "failed")


Tiers.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTiers = Tiers.TestCase


def loaded(later: Later, tiers: AdapterTiers, *digests: str) -> None:
    for digest in digests:
        tiers.prefetch(digest)
        while later.waiting:
            later.run()


def test_an_adapter_that_failed_is_tried_again_after_a_while():
    later, clock = Later(), Clock()
    tiers = tiers_of(later, clock=clock)
    loaded(later, tiers, BROKEN, "a")
    assert tiers.state(BROKEN) == "failed"
    assert isinstance(tiers.error(BROKEN), CorruptFileError)
    assert tiers.state("a") == "memory"
    tiers.prefetch(BROKEN)
    assert later.waiting == []  # a thousand requests cost one reading
    clock.now = 31
    assert tiers.state(BROKEN) == "disk"
    loaded(later, tiers, BROKEN)
    assert tiers.stats().failures == 2


def test_an_error_of_any_kind_fails_one_adapter_alone():
    def load(digest: str) -> PackedAdapter:
        if digest == "b":
            raise ZeroDivisionError("of somebody else's code")
        return packed(digest)

    later, told = Later(), []
    tiers = tiers_of(later, load=load)
    tiers.listen(lambda: told.append(1))
    loaded(later, tiers, "a", "b", "c")
    assert [tiers.state(each) for each in "abc"] == ["memory", "failed", "memory"]
    assert "ZeroDivisionError" in str(tiers.error("b"))
    assert len(told) == 3


def test_one_larger_than_the_memory_is_refused_by_its_size():
    later = Later()
    tiers = tiers_of(later)
    loaded(later, tiers, "g")
    assert "11 bytes" in str(tiers.error("g"))


def test_memory_in_use_is_waited_for_without_reading_again_and_again():
    later = Later()
    tiers = tiers_of(later)
    loaded(later, tiers, "d", "e")
    assert tiers.acquire("d")
    assert tiers.acquire("e")
    loaded(later, tiers, "c")  # its size is not known before
    assert tiers.state("c") == "disk"
    loads = tiers.stats().loads
    loaded(later, tiers, "c")
    assert tiers.stats().loads == loads
    tiers.release("e")
    loaded(later, tiers, "c")
    assert tiers.acquire("c")


def test_a_working_set_larger_than_the_slots_is_served_in_turn():
    later = Later()
    tiers = tiers_of(later)
    for digest in "abcdabcd":
        loaded(later, tiers, digest)
        assert tiers.acquire(digest)
        tiers.release(digest)
    stats = tiers.stats()
    assert (stats.loads, stats.promotions, stats.hits) == (4, 8, 0)
    assert stats.slot_evictions == 6


def test_loaders_of_its_own_load_beside_each_other(tmp_path):
    import threading

    model: Any = SimpleNamespace(
        device=torch.device("cpu"), steps=SimpleNamespace(forget=lambda: None)
    )
    both = threading.Barrier(2, timeout=10)

    def load(digest: str) -> PackedAdapter:
        both.wait()  # neither ends before the other has begun
        return packed(digest)

    source: Any = SimpleNamespace()
    tiers = AdapterTiers(model, source, num_slots=2, memory_bytes=10, num_loaders=2, load=load)
    ended = threading.Semaphore(0)
    tiers.listen(ended.release)
    tiers.prefetch("a")
    tiers.prefetch("b")
    assert ended.acquire(timeout=10)
    assert ended.acquire(timeout=10)
    assert [tiers.state(each) for each in "ab"] == ["memory", "memory"]
    tiers.close()
    tiers.prefetch("c")
    assert tiers.state("c") == "disk"


@pytest.mark.parametrize("name", ["num_slots", "memory_bytes"])
def test_no_place_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        tiers_of(Later(), **{name: 0})
    assert caught.value.problems[0].key == name
