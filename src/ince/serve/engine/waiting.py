"""Who waits: first come, first served within a tenant, and findable by adapter.

Ten thousand may wait, most of them for adapters that are not there. So each tenant's requests
stand in one line for each adapter: looking past an adapter passes over all who wait for it.
Shape of the work: adding, taking and removing are O(1); a look at a tenant is O(its adapters).
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import TypeVar

from ince.serve.engine.sequence import SequenceState

__all__ = ["WaitingRoom", "count_down"]

_Key = TypeVar("_Key")

_Line = OrderedDict[int, SequenceState]


class WaitingRoom:
    """Every waiting sequence, once."""

    def __init__(self) -> None:
        self._tenants: dict[str, dict[str | None, _Line]] = {}
        self.by_tenant: Counter[str] = Counter()
        self.by_adapter: Counter[str | None] = Counter()
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[SequenceState]:
        for lines in self._tenants.values():
            for line in lines.values():
                yield from line.values()

    def tenants(self) -> list[str]:
        """Those of whom somebody waits."""
        return list(self._tenants)

    def add(self, sequence: SequenceState, *, first: bool = False) -> None:
        """Put at the end of its line; `first` puts one that ran already at the front."""
        lines = self._tenants.setdefault(sequence.tenant, {})
        line = lines.setdefault(sequence.adapter, OrderedDict())
        line[sequence.arrival] = sequence
        if first:
            line.move_to_end(sequence.arrival, last=False)
        self.by_tenant[sequence.tenant] += 1
        self.by_adapter[sequence.adapter] += 1
        self._num += 1

    def remove(self, sequence: SequenceState) -> None:
        """Take out one that waits."""
        lines = self._tenants[sequence.tenant]
        line = lines[sequence.adapter]
        del line[sequence.arrival]
        if not line:
            del lines[sequence.adapter]
        if not lines:
            del self._tenants[sequence.tenant]
        count_down(self.by_tenant, sequence.tenant)
        count_down(self.by_adapter, sequence.adapter)
        self._num -= 1

    def heads(self, tenant: str) -> Iterator[SequenceState]:
        """The tenant's sequences to choose from, oldest first.

        Whoever is taken out (`remove`) before the next one is asked for makes room for the one
        behind it; whoever is left stands in the way of its whole line.
        """
        lines = self._tenants.get(tenant)
        if lines is None:
            return
        heap = [(next(iter(line)), adapter or "", adapter) for adapter, line in lines.items()]
        heapq.heapify(heap)
        while heap:
            arrival, name, adapter = heapq.heappop(heap)
            line = lines.get(adapter)
            if line is None or arrival not in line:
                continue
            yield line[arrival]
            line = lines.get(adapter)
            if line and arrival not in line:
                heapq.heappush(heap, (next(iter(line)), name, adapter))


def count_down(counts: Counter[_Key], key: _Key) -> None:
    """Take one off; keys without a count go."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
