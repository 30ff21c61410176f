"""Which requests may have their adapter, when there are more adapters than slots.

A request whose adapter has no slot is passed over while another's has one. Else a working set
larger than the slots would move adapters in and out for every request.

Passing over ends. Who was passed over too often or too long is owed the next slot: nobody else
takes it, and where all slots are in use, the adapters whose running requests end first get no new
ones until they are free. So nobody starves, whatever is popular.
"""

import enum
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ince.errors import InceError
from ince.serve.engine.sequence import SequenceState, Stage
from ince.serve.engine.waiting import WaitingRoom

__all__ = ["AdapterSlots", "Answer", "Patience", "WorkingSet"]

_ON_DEVICE, _IN_MEMORY, _ON_DISK, _FAILED = "device", "memory", "disk", "failed"


class AdapterSlots(Protocol):
    """Where adapters are; `ince.serve.adapters.AdapterTiers` is one."""

    @property
    def num_slots(self) -> int:
        """Adapters that can be on the device at once."""
        ...

    def prefetch(self, digest: str) -> None:
        """Begin to load, where it is not loaded or loading."""
        ...

    def state(self, digest: str) -> str:
        """``device``, ``memory``, ``loading``, ``disk`` or ``failed``."""
        ...

    def error(self, digest: str) -> InceError | None:
        """Why it failed."""
        ...

    def acquire(self, digest: str) -> object | None:
        """Put into a slot and count a user; None where that cannot be done now."""
        ...

    def release(self, digest: str) -> None:
        """Count a user less."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long a request may be passed over for its adapter's sake."""

    times: int = 16
    """Rounds in which others went ahead."""
    seconds: float = 0.5
    """Since it was first passed over."""


class Answer(enum.Enum):
    """What became of asking for an adapter."""

    HELD = "the sequence has it"
    PASSED = "it is loaded, but others go first"
    ABSENT = "it is not loaded yet"
    FAILED = "it cannot be had"


class WorkingSet:
    """Hands out slots. `begin` a round, then `take` for one sequence after the other.

    Args:
        slots: None where there is a base only.
        waiting: everybody who waits.
        patience: how long one may be passed over.
    """

    def __init__(
        self, slots: AdapterSlots | None, waiting: WaitingRoom, patience: Patience
    ) -> None:
        self._slots = slots
        self._num_slots = 0 if slots is None else slots.num_slots
        self._waiting = waiting
        self._patience = patience
        # Adapter to the request that is owed a slot for it.
        self._owed: dict[str, SequenceState] = {}
        self._now = 0.0
        # Adapters with running requests, and the tokens that they may still generate.
        self._running: dict[str, int] = {}
        self._closed: set[str] = set()
        self._wanted: set[str] | None = None
        self._num_prefetched = 0

    @property
    def num_owed(self) -> int:
        """Adapters that wait for the next slot."""
        return len(self._owed)

    def prefetch(self, sequence: SequenceState) -> None:
        """Begin to load the adapter of one that starts to wait, unless many do already."""
        if self._slots is None or sequence.adapter is None:
            return
        if len(self._waiting.by_adapter) <= 2 * self._num_slots:
            self._slots.prefetch(sequence.adapter)

    def is_at_hand(self, sequence: SequenceState) -> bool:
        """Whether the sequence needs no slot to be filled."""
        return sequence.adapter is None or self._state(sequence.adapter) == _ON_DEVICE

    def error(self, sequence: SequenceState) -> InceError | None:
        """Why the sequence's adapter cannot be had, if anybody knows."""
        if self._slots is None or sequence.adapter is None:
            return None
        return self._slots.error(sequence.adapter)

    def begin(self, now: float, running: Iterable[SequenceState]) -> None:
        """Look at who runs and who is owed."""
        self._now = now
        self._wanted = None
        self._num_prefetched = 0
        self._running = {}
        for sequence in running:
            if sequence.adapter is not None:
                left = sequence.most_tokens - len(sequence.tokens)
                self._running[sequence.adapter] = max(self._running.get(sequence.adapter, 0), left)
        for adapter, sequence in list(self._owed.items()):
            if sequence.stage is not Stage.WAITING:
                del self._owed[adapter]
        num_unused = max(0, self._num_slots - len(self._running))
        count = max(0, len(self._owed) - num_unused)
        # At most half of them: else rows stand empty while slots drain.
        count = min(count, max(1, self._num_slots // 2))
        self._closed = set(heapq.nsmallest(count, self._running, key=self._running.__getitem__))

    def take(self, sequence: SequenceState) -> Answer:
        """Hold the sequence's adapter for it, if it is its turn."""
        slots, adapter = self._slots, sequence.adapter
        if adapter is None:
            return Answer.HELD
        state = self._state(adapter)
        if slots is None or state == _FAILED:
            return Answer.FAILED
        if state == _ON_DEVICE:
            if adapter in self._closed:
                return Answer.PASSED
        elif state == _IN_MEMORY:
            if not self._may_fill_a_slot(sequence, adapter):
                return Answer.PASSED
        else:
            if state == _ON_DISK and self._num_prefetched < 2 * self._num_slots:
                slots.prefetch(adapter)
                self._num_prefetched += 1
            return Answer.ABSENT
        sequence.held = slots.acquire(adapter)
        if sequence.held is None:
            return Answer.PASSED
        self._owed.pop(adapter, None)
        self._running.setdefault(adapter, sequence.max_tokens)
        if self._wanted is not None and state != _ON_DEVICE:
            # What it took the slot from may have been wanted; looking at all who wait is for once.
            self._wanted = {one for one in self._wanted if self._state(one) == _ON_DEVICE}
            self._wanted.add(adapter)
        return Answer.HELD

    def give_back(self, sequence: SequenceState) -> None:
        """Let go of the sequence's adapter."""
        if sequence.held is not None and sequence.adapter is not None and self._slots is not None:
            self._slots.release(sequence.adapter)
        sequence.held = None

    def _state(self, adapter: str) -> str:
        return _FAILED if self._slots is None else self._slots.state(adapter)

    def _may_fill_a_slot(self, sequence: SequenceState, adapter: str) -> bool:
        if not sequence.passed_since:
            sequence.passed_since = self._now
        if adapter in self._owed or self._has_spare_slot():
            return True
        patience = self._patience
        waited = self._now - sequence.passed_since
        if sequence.passed < patience.times and waited < patience.seconds:
            return False
        self._owed[adapter] = sequence
        return len(self._owed) <= self._num_slots - len(self._running)

    def _has_spare_slot(self) -> bool:
        """Whether some slot holds an adapter that nobody uses or waits for, and none is owed it."""
        if self._wanted is None:
            wanted = set(self._running)
            wanted.update(
                adapter
                for adapter in self._waiting.by_adapter
                if adapter is not None
                and adapter not in wanted
                and self._state(adapter) == _ON_DEVICE
            )
            self._wanted = wanted
        return len(self._wanted) + len(self._owed) < self._num_slots
