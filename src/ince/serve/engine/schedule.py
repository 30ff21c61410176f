"""What each step computes: decoding first, then prompts in chunks, then whoever waits.

Continuous batching. A step has room for so many tokens; each running sequence that decodes takes
one, prompts fill the rest, and new sequences join whenever there is a row, room and blocks. A
sequence that needs a block when none is left takes it from one that came later, which waits at the
front again and is computed anew: the oldest one always goes on, so all end. A tenant with less
than its share of rows takes one from the tenant furthest above its own; one that has none takes it
at once, and its prompt comes before those of the others.

Nothing here knows tensors: the engine carries out a `StepPlan` and calls `commit`.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ince.errors import InceError, InputError
from ince.serve.engine.admission import Admission
from ince.serve.engine.blocks import BLOCK_SIZE, BlockPool
from ince.serve.engine.deadlines import Deadlines
from ince.serve.engine.fairness import TenantCounters
from ince.serve.engine.sequence import SequenceState, Stage
from ince.serve.engine.waiting import WaitingRoom, count_down
from ince.serve.engine.working_set import AdapterSlots, Patience, WorkingSet

__all__ = ["Scheduler", "StepPlan", "StepRow"]

# Steps that a tenant with rows, but fewer than its share, waits for one to end before it is taken.
_SHORT_STEPS = 3


@dataclass(frozen=True)
class StepRow:
    """Tokens ``start`` to ``start + count`` of a sequence are computed in this step."""

    sequence: SequenceState
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the next token can be chosen after it."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass
class StepPlan:
    """One step. Sequences of one adapter stand together."""

    rows: list[StepRow] = field(default_factory=list[StepRow])
    admitted: list[SequenceState] = field(default_factory=list[SequenceState])
    """Those that run for the first time."""
    failed: list[tuple[SequenceState, InceError | None]] = field(
        default_factory=list[tuple[SequenceState, InceError | None]]
    )
    """Those whose adapter cannot be had; they are done."""


class _Room:
    """What of a step is still to be given away."""

    def __init__(self, num_tokens: int, num_logits: int) -> None:
        self.num_tokens = num_tokens
        self.num_logits = num_logits
        self.counts: dict[int, int] = {}  # by arrival

    def most_for(self, sequence: SequenceState) -> int:
        """Tokens of it that there is room for."""
        most = min(sequence.num_left, self.num_tokens)
        return min(most, self.num_logits) if sequence.every_logit else most

    def take(self, sequence: SequenceState, count: int) -> None:
        self.counts[sequence.arrival] = count
        self.num_tokens -= count
        if sequence.every_logit:
            self.num_logits -= count

    def give_back(self, sequence: SequenceState) -> None:
        count = self.counts.pop(sequence.arrival, 0)
        self.num_tokens += count
        if sequence.every_logit:
            self.num_logits += count


def num_blocks_of(num_tokens: int) -> int:
    """Blocks for so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


class Scheduler:
    """Which sequences run, and what of them is computed next.

    Args:
        pool: the blocks; nobody else takes from it.
        max_batch_tokens: of one step. It may be changed between steps.
        max_running: sequences at once.
        adapters: None where there is a base only.
        weights: of tenants; 1 where none is given.
        max_logits: places of a step where logits may be wanted, above `max_running`.
        patience: of requests whose adapter has no slot.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_running: int,
        adapters: AdapterSlots | None = None,
        weights: Mapping[str, float] | None = None,
        max_logits: int = 256,
        patience: Patience | None = None,
    ) -> None:
        if not 1 <= max_running < max_batch_tokens:
            raise InputError(
                "a step must have room for a token of every running request, and one of a prompt",
                got=f"max_running={max_running}, max_batch_tokens={max_batch_tokens}",
                expected="1 or more running, and more tokens than that",
            )
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.max_logits = max(1, max_logits)
        self.waiting = WaitingRoom()
        self.running: dict[int, SequenceState] = {}
        self.running_by_adapter: Counter[str | None] = Counter()
        self.counters = TenantCounters(weights)
        self.working_set = WorkingSet(adapters, self.waiting, patience or Patience())
        self._admission = Admission(self.waiting, self.counters, self.working_set)
        self.num_preemptions = 0
        self.num_hit_tokens = 0
        self._running_by_tenant: Counter[str] = Counter()
        self._arrivals = itertools.count()
        self._deadlines = Deadlines()
        self._step = 0
        self._num_short = 0

    # -------------------------------------------------------------------------- coming and going

    def add(self, sequence: SequenceState) -> None:
        """Let a sequence wait."""
        sequence.arrival = next(self._arrivals)
        self._deadlines.add(sequence)
        self._wait(sequence)
        self.working_set.prefetch(sequence)

    def finish(self, sequence: SequenceState) -> None:
        """Take a sequence out, wherever it is; what it computed may be reused."""
        if sequence.stage is Stage.WAITING:
            self.waiting.remove(sequence)
            if not self.waiting.by_tenant[sequence.tenant]:
                self.counters.leaves(sequence.tenant)
        elif sequence.stage is Stage.RUNNING:
            self._stop(sequence)
        sequence.stage = Stage.DONE

    def append(self, sequence: SequenceState, token: int) -> None:
        """A token was generated."""
        sequence.tokens.append(token)
        self.counters.charge(sequence.tenant, outputs=1)

    def due(self, now: float) -> list[SequenceState]:
        """Sequences whose deadline is over; they are still where they were."""
        return self._deadlines.due(now)

    def next_deadline(self) -> float | None:
        """When `due` will next have somebody."""
        return self._deadlines.next()

    @property
    def has_work(self) -> bool:
        """Whether anybody waits or runs."""
        return bool(self.running) or len(self.waiting) > 0

    def preempt(self, sequence: SequenceState) -> None:
        """Stop a running sequence; it waits at the front and is computed anew."""
        self._stop(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1
        self._wait(sequence, first=True)

    def _wait(self, sequence: SequenceState, *, first: bool = False) -> None:
        sequence.stage = Stage.WAITING
        self.waiting.add(sequence, first=first)
        self.counters.arrives(sequence.tenant)

    def _stop(self, sequence: SequenceState) -> None:
        del self.running[sequence.arrival]
        count_down(self.running_by_adapter, sequence.adapter)
        count_down(self._running_by_tenant, sequence.tenant)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        self.working_set.give_back(sequence)

    # ------------------------------------------------------------------------------------ a step

    def plan(self, now: float) -> StepPlan:
        """The next step; empty when nothing can be computed until an adapter is loaded."""
        self._step += 1
        newcomer = self._make_way()
        plan, room = StepPlan(), _Room(self.max_batch_tokens, self.max_logits)
        decoding, reading = self._in_order()
        self._go_on(decoding, room)
        if newcomer is not None:
            self._admit(plan, room, now, only=newcomer)
        self._go_on(reading, room)
        self._admit(plan, room, now)
        plan.failed = self._admission.failed
        self._admission.failed = []
        for sequence, _ in plan.failed:
            sequence.stage = Stage.DONE
        plan.rows = [
            StepRow(sequence, sequence.num_computed, room.counts[arrival])
            for arrival, sequence in self.running.items()
            if arrival in room.counts
        ]
        for row in plan.rows:
            row.sequence.last_step = self._step
        plan.rows.sort(key=lambda row: (row.sequence.adapter or "", row.sequence.arrival))
        return plan

    def commit(self, row: StepRow) -> None:
        """Keys and values of the row are in the blocks: full ones can be found from now on."""
        sequence = row.sequence
        sequence.num_computed = row.start + row.count
        num_full = sequence.num_computed // BLOCK_SIZE
        keys = sequence.keys.of(sequence.tokens, num_full)
        for i in range(row.start // BLOCK_SIZE, num_full):
            self.pool.seal(sequence.blocks[i], keys[i])

    def _go_on(self, sequences: list[SequenceState], room: _Room) -> None:
        for sequence in sequences:
            if not room.num_tokens:
                break
            if sequence.stage is not Stage.RUNNING:  # it gave its blocks to an older one
                continue
            self._give_room(sequence, room)

    def _give_room(self, sequence: SequenceState, room: _Room) -> None:
        """As many of its tokens as there is room for, if there are blocks for them."""
        count = room.most_for(sequence)
        if count and self._grow(sequence, sequence.num_computed + count, room):
            room.take(sequence, count)

    def _in_order(self) -> tuple[list[SequenceState], list[SequenceState]]:
        """The running: those that decode, and those that read, of whom was given least first."""
        decoding = [s for s in self.running.values() if s.num_left == 1]
        reading = [s for s in self.running.values() if s.num_left > 1]
        if len(decoding) >= self.max_batch_tokens:  # after the step's room was cut
            return sorted(self.running.values(), key=lambda s: (s.last_step, s.arrival)), []
        decoding.sort(key=lambda s: s.arrival)
        reading.sort(key=lambda s: (self.counters.counter(s.tenant), s.arrival))
        return decoding, reading

    def _grow(self, sequence: SequenceState, num_tokens: int, room: _Room) -> bool:
        """Give blocks for `num_tokens`; where there are none, from those that came later."""
        missing = num_blocks_of(num_tokens) - len(sequence.blocks)
        if missing <= 0:
            return True
        while (blocks := self.pool.allocate(missing)) is None:
            latest = max(self.running)
            if latest == sequence.arrival:
                return False
            room.give_back(self.running[latest])
            self.preempt(self.running[latest])
        sequence.blocks += blocks
        return True

    def _admit(self, plan: StepPlan, room: _Room, now: float, *, only: str | None = None) -> None:
        """Let those who wait join while there is room; `only` those of one tenant."""
        if not room.num_tokens or len(self.running) >= self.max_running:
            return
        promised = sum(
            max(0, num_blocks_of(len(s.tokens)) - len(s.blocks)) for s in self.running.values()
        )
        with contextlib.closing(self._admission.turns(now, self.running.values())) as turns:
            for sequence in turns:
                if only is not None and sequence.tenant != only:
                    self.working_set.give_back(sequence)
                    return
                found = self._prefix(sequence)
                if self._missing(sequence, found) + promised > 0:
                    self.working_set.give_back(sequence)
                    return
                self._start(sequence, found, plan)
                self._give_room(sequence, room)
                promised += num_blocks_of(len(sequence.tokens)) - len(sequence.blocks)
                if not room.num_tokens or len(self.running) == self.max_running:
                    return

    def _start(self, sequence: SequenceState, found: list[int], plan: StepPlan) -> None:
        self.waiting.remove(sequence)
        self.pool.share(found)
        sequence.blocks = found
        sequence.num_computed = len(found) * BLOCK_SIZE
        self.num_hit_tokens += sequence.num_computed
        sequence.stage = Stage.RUNNING
        sequence.passed, sequence.passed_since = 0, 0.0
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
            plan.admitted.append(sequence)
        if not sequence.charged:  # what is computed anew was our choice
            sequence.charged = True
            self.counters.charge(sequence.tenant, inputs=sequence.num_left)
        if not self.waiting.by_tenant[sequence.tenant]:
            self.counters.leaves(sequence.tenant)
        self.running[sequence.arrival] = sequence
        self.running_by_adapter[sequence.adapter] += 1
        self._running_by_tenant[sequence.tenant] += 1

    def _prefix(self, sequence: SequenceState) -> list[int]:
        keys = sequence.keys.of(sequence.tokens, sequence.num_reusable_blocks)
        return self.pool.match(keys)

    def _missing(self, sequence: SequenceState, found: list[int]) -> int:
        """Blocks that are lacking to admit it: its tokens so far, a block to grow, and a few."""
        whole = num_blocks_of(sequence.most_tokens)
        needed = min(num_blocks_of(len(sequence.tokens)) + 1, whole) - len(found)
        kept = min(len(self.running), self.pool.num_blocks // 32)
        return needed + kept - (self.pool.num_available - self.pool.num_idle_of(found))

    def _make_way(self) -> str | None:
        """Let a tenant below its share of rows in, at the cost of the one furthest above.

        Returns:
            The tenant, if it has no row yet and there is one for it now.
        """
        most_share = self.counters.most_share(max(1, len(self.waiting.by_tenant)))
        if self.max_running * most_share < 1:
            return None  # so many wait that nobody's share is a row
        tenants = set(self._running_by_tenant) | set(self.waiting.by_tenant)
        if len(tenants) < 2 or not self.waiting:
            return None
        weights = {tenant: self.counters.weight(tenant) for tenant in tenants}
        whole = sum(weights.values())
        share = {tenant: self.max_running * weights[tenant] / whole for tenant in tenants}
        rows = self._running_by_tenant
        above = max(tenants, key=lambda tenant: (rows[tenant] / share[tenant], tenant))
        if rows[above] <= share[above]:
            return None
        is_full = len(self.running) >= self.max_running
        for tenant in sorted(self.waiting.by_tenant, key=self.counters.counter):
            if self.counters.counter(tenant) > self.counters.counter(above):
                return None  # the row would go back to whom it was taken from
            if rows[tenant] + 1 > share[tenant]:
                continue
            sequence = self._admission.ready(tenant)
            if sequence is None:
                continue
            if is_full or self._missing(sequence, self._prefix(sequence)) > 0:
                self._num_short += 1  # a row may end by itself, which costs nothing
                if rows[tenant] and self._num_short < _SHORT_STEPS:
                    return None
                latest = max(a for a, s in self.running.items() if s.tenant == above)
                self.preempt(self.running[latest])
            self._num_short = 0
            return None if rows[tenant] else tenant
        return None
