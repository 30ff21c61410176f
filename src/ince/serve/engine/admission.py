"""Who of those that wait goes next.

Tenants take turns by their counters (`fairness`), and a tenant's requests go in the order of their
arrival, but for those whose adapter has no slot now (`working_set`).
"""

import itertools
from collections.abc import Generator, Iterable, Iterator

from ince.errors import InceError
from ince.serve.engine.fairness import TenantCounters
from ince.serve.engine.sequence import SequenceState
from ince.serve.engine.waiting import WaitingRoom
from ince.serve.engine.working_set import Answer, WorkingSet

__all__ = ["Admission"]

# Lines of one tenant that are looked at in one round. The oldest come first, so none is forgotten.
_MAX_LOOKS = 256


class Admission:
    """Chooses among the waiting; the scheduler says how many there is room for."""

    def __init__(
        self, waiting: WaitingRoom, counters: TenantCounters, working_set: WorkingSet
    ) -> None:
        self._waiting = waiting
        self._counters = counters
        self._working_set = working_set
        self.failed: list[tuple[SequenceState, InceError | None]] = []
        """Taken out of the waiting because their adapter cannot be had; the caller empties it."""

    def ready(self, tenant: str) -> SequenceState | None:
        """The tenant's oldest request that needs no slot to be filled, or None."""
        heads = itertools.islice(self._waiting.heads(tenant), _MAX_LOOKS)
        return next((head for head in heads if self._working_set.is_at_hand(head)), None)

    def turns(
        self, now: float, running: Iterable[SequenceState]
    ) -> Generator[SequenceState, None, None]:
        """One after the other, the sequences to admit, each with its adapter held.

        Whoever asks for the next one has removed the last from the waiting and charged its tenant.
        Who does not admit one gives its adapter back, asks no more, and closes the generator.
        """
        self._working_set.begin(now, running)
        heads: dict[str, Iterator[SequenceState]] = {}
        passed: list[SequenceState] = []
        over: list[str] = []  # tenants who have nobody to admit in this round
        try:
            while (tenant := self._counters.next()) is not None:
                over.append(tenant)
                if tenant not in heads:
                    heads[tenant] = self._waiting.heads(tenant)
                sequence = self._next(itertools.islice(heads[tenant], _MAX_LOOKS), passed)
                if sequence is None:
                    continue
                yield sequence
                self._counters.line_up(over.pop())
                for each in passed:
                    each.passed += 1
                passed.clear()
        finally:
            for tenant in over:
                self._counters.line_up(tenant)

    def _next(
        self, heads: Iterator[SequenceState], passed: list[SequenceState]
    ) -> SequenceState | None:
        is_first = True
        for sequence in heads:
            answer = self._working_set.take(sequence)
            if answer is Answer.HELD:
                return sequence
            if answer is Answer.FAILED:
                self.failed.append((sequence, self._working_set.error(sequence)))
                self._waiting.remove(sequence)
                if not self._waiting.by_tenant[sequence.tenant]:
                    self._counters.leaves(sequence.tenant)
            elif answer is Answer.PASSED and is_first:
                # One of a tenant in a turn, or the one who asks for most adapters is owed most.
                passed.append(sequence)
                is_first = False
        return None
