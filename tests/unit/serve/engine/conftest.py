"""A server without tensors: slots of adapters, and a memory that says what was written where."""

import itertools
from collections import Counter

import pytest

from ince.errors import AdapterError
from ince.serve.engine.blocks import BLOCK_SIZE, BlockPool
from ince.serve.engine.schedule import Scheduler
from ince.serve.engine.sequence import SequenceState
from ince.serve.engine.working_set import Patience


class FakeSlots:
    """Adapters on three tiers; a load takes `load_rounds` calls of `tick`."""

    def __init__(self, num_slots: int, load_rounds: int = 0, failing: frozenset[str] = frozenset()):
        self.num_slots = num_slots
        self.load_rounds = load_rounds
        self.failing = failing
        self.slots: dict[str, None] = {}  # least recently used first
        self.users: Counter[str] = Counter()
        self.loading: dict[str, int] = {}
        self.memory: set[str] = set()
        self.num_fills = 0

    def state(self, digest):
        if digest in self.failing:
            return "failed"
        if digest in self.slots:
            return "device"
        if digest in self.memory:
            return "memory"
        return "loading" if digest in self.loading else "disk"

    def error(self, digest):
        return AdapterError("it is broken", where=digest)

    def prefetch(self, digest):
        if self.state(digest) == "disk":
            self.loading[digest] = self.load_rounds
            self.tick(0)

    def tick(self, rounds=1):
        for digest in list(self.loading):
            self.loading[digest] -= rounds
            if self.loading[digest] <= 0:
                del self.loading[digest]
                self.memory.add(digest)

    def acquire(self, digest):
        if digest not in self.slots:
            assert digest in self.memory, "the scheduler asked for what is not loaded"
            if len(self.slots) == self.num_slots:
                idle = next((d for d in self.slots if not self.users[d]), None)
                if idle is None:
                    return None
                del self.slots[idle]
            self.num_fills += 1
        self.slots.pop(digest, None)
        self.slots[digest] = None
        self.users[digest] += 1
        return f"packed {digest}"

    def release(self, digest):
        assert self.users[digest] > 0
        self.users[digest] -= 1


class Simulation:
    """Carries out plans: remembers for each slot of the pool which prefix it holds."""

    def __init__(self, *, num_blocks=16, slots=None, seconds=0.01, **settings):
        self.pool = BlockPool(num_blocks)
        settings = {
            "max_batch_tokens": 24,
            "max_running": 4,
            "patience": Patience(4, 0.2),
        } | settings
        self.scheduler = Scheduler(self.pool, adapters=slots, **settings)
        self.slots = slots
        self.memory: dict[int, int] = {}
        self.chains: dict[int, list] = {}
        self.now, self.seconds = 1.0, seconds
        self.names = itertools.count()
        self.live: list[SequenceState] = []
        self.done: list[SequenceState] = []
        self.failed: list[SequenceState] = []
        self.num_steps = 0

    def add(self, prompt, max_tokens=4, **settings):
        sequence = SequenceState(prompt, max_tokens=max_tokens, **settings)
        sequence.owner = settings
        self.scheduler.add(sequence)
        self.live.append(sequence)
        return sequence

    def finish(self, sequence):
        self.scheduler.finish(sequence)
        self.live.remove(sequence)
        self.done.append(sequence)

    def step(self):
        scheduler = self.scheduler
        self.now += self.seconds
        self.num_steps += 1
        if self.slots is not None:
            self.slots.tick()
        for sequence in scheduler.due(self.now):
            self.finish(sequence)
        plan = scheduler.plan(self.now)
        self.check(plan)
        for sequence, error in plan.failed:
            assert error is not None
            self.live.remove(sequence)
            self.failed.append(sequence)
        for row in plan.rows:
            self.compute(row)
        for row in plan.rows:
            scheduler.commit(row)
            if row.is_last:
                sequence = row.sequence
                scheduler.append(sequence, (sequence.arrival * 7 + len(sequence.tokens)) % 3)
                if sequence.num_generated == sequence.max_tokens:
                    self.finish(sequence)
        self.check_pool()
        return plan

    def run(self, most_steps):
        for _ in range(most_steps):
            if not self.live:
                return
            self.step()
        raise AssertionError(f"{len(self.live)} requests never ended")

    def prefix(self, sequence, place):
        """What a slot must hold: a digest of every token up to it, and of all it depends on."""
        chain = self.chains.setdefault(sequence.arrival, [])
        if not chain:
            own = sequence.owner
            chain.append((own.get("tenant", ""), own.get("salt", ""), own.get("adapter")))
        while len(chain) < place + 2:
            chain.append(hash((chain[-1], sequence.tokens[len(chain) - 1])))
        return chain[place + 1]

    def compute(self, row):
        """Write the row's tokens, and read all before them."""
        sequence = row.sequence
        assert row.count >= 1
        assert row.start == sequence.num_computed
        for place in range(row.start, row.start + row.count):
            slot = sequence.blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            self.memory[slot] = self.prefix(sequence, place)
        for place in range(row.start):
            slot = sequence.blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            assert self.memory[slot] == self.prefix(sequence, place), "another's cache was read"

    def check(self, plan):
        scheduler = self.scheduler
        assert sum(row.count for row in plan.rows) <= scheduler.max_batch_tokens
        assert len(scheduler.running) <= scheduler.max_running
        every = sum(row.count for row in plan.rows if row.sequence.every_logit)
        assert every <= scheduler.max_logits
        assert len({row.sequence.arrival for row in plan.rows}) == len(plan.rows)
        adapters = [key for key, _ in itertools.groupby(row.sequence.adapter for row in plan.rows)]
        assert len(adapters) == len(set(adapters)), "rows of an adapter stand together"
        for row in plan.rows:
            if row.sequence.adapter is not None:
                assert row.sequence.held == f"packed {row.sequence.adapter}"

    def check_pool(self):
        pool, running = self.pool, self.scheduler.running.values()
        users = Counter(block for sequence in running for block in sequence.blocks)
        assert [pool._users[block] for block in range(pool.num_blocks)] == [
            users[block] for block in range(pool.num_blocks)
        ]
        free, idle = pool._free, list(pool._idle)
        assert sorted([*free, *idle, *users]) == list(range(pool.num_blocks))
        assert all(pool._keys[block] is None for block in free)
        assert pool._by_key == {
            key: block for block, key in enumerate(pool._keys) if key is not None
        }
        if self.slots is not None:
            held = Counter(s.adapter for s in running if s.adapter is not None)
            assert +self.slots.users == held


@pytest.fixture(scope="session")
def simulation():
    """The class: many of them in one test."""
    return Simulation


@pytest.fixture(scope="session")
def fake_slots():
    """The class: many of them in one test."""
    return FakeSlots
