"""Which sequences have run out of time, without looking at all of them."""

import heapq

from ince.serve.engine.sequence import SequenceState, Stage

__all__ = ["Deadlines"]


class Deadlines:
    """A heap of deadlines; those of finished sequences are swept out now and then."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, SequenceState]] = []
        self._sweep_at = 64

    def add(self, sequence: SequenceState) -> None:
        """Watch one, if it has a deadline."""
        if sequence.deadline is None:
            return
        heapq.heappush(self._heap, (sequence.deadline, sequence.arrival, sequence))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].stage is not Stage.DONE]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 64

    def next(self) -> float | None:
        """The nearest deadline of a sequence that is not done."""
        while self._heap and self._heap[0][2].stage is Stage.DONE:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[SequenceState]:
        """Those whose time is over; each is told once."""
        over: list[SequenceState] = []
        while (nearest := self.next()) is not None and nearest <= now:
            over.append(heapq.heappop(self._heap)[2])
        return over
