"""`Runner`: carries out what the scheduler plans, one step after the other, on one thread.

A step that fails is cut in halves, and these again: a request at which the model fails does so
alone, and memory that does not suffice for all suffices for some. Whoever fails alone gets the
error; the rest go on. After memory was refused, steps are smaller for a while.
"""

import logging
import time
from collections.abc import Sequence

from ince.errors import AdapterError, InceError, OutOfMemoryError
from ince.heap import give_back, is_out_of_memory
from ince.serve.engine.flight import Flight
from ince.serve.engine.forward import PagedForward, Wanted
from ince.serve.engine.schedule import Scheduler, StepRow
from ince.serve.engine.sequence import SequenceState
from ince.serve.sampling import choose

__all__ = ["Runner"]

_log = logging.getLogger("ince.serve")

# Steps without a refusal until a step may be twice as large again.
_STEPS_UNTIL_LARGER = 64


class Runner:
    """The requests that the engine has taken on.

    Args:
        scheduler: whose plans are carried out.
        forward: that carries them out.
    """

    def __init__(self, scheduler: Scheduler, forward: PagedForward) -> None:
        self.scheduler = scheduler
        self.num_steps = 0
        self.num_tokens = 0
        self.num_generated = 0
        self.step_seconds = 0.0
        self.is_stalled = False
        """Nothing could be computed: somebody waits for an adapter to be loaded."""
        self._forward = forward
        self._most_tokens = scheduler.max_batch_tokens
        self._steps_since_refusal = 0
        self._num_over = 0

    @property
    def has_work(self) -> bool:
        """Whether another step would compute something, as far as is known."""
        return self.scheduler.has_work and not self.is_stalled

    def arrive(self, flight: Flight) -> None:
        """Let a request wait for its turn."""
        self.is_stalled = False
        if not flight.is_over:
            self.scheduler.add(flight.sequence)

    def cancel(self, flight: Flight) -> None:
        """End a request, wherever it is."""
        self.is_stalled = False
        if not flight.is_over:
            flight.finish("cancelled")
            self._remove(flight)

    def take_over(self) -> int:
        """How many requests have ended since this was last asked."""
        count, self._num_over = self._num_over, 0
        return count

    def fail_all(self, error: BaseException) -> None:
        """End everything with an error."""
        left = [*self.scheduler.running.values(), *self.scheduler.waiting]
        for sequence in left:  # everybody is told, whatever comes after
            sequence.owner.fail(error)
        for sequence in left:
            self._remove(sequence.owner)

    def step(self) -> None:
        """One step, if there is anything to compute."""
        begun = time.perf_counter()
        now = time.monotonic()
        for sequence in self.scheduler.due(now):
            flight: Flight = sequence.owner
            flight.finish("deadline")
            self._remove(flight)
        plan = self.scheduler.plan(now)
        for sequence, error in plan.failed:
            self._fail(sequence, error or _no_adapters(sequence))
        for sequence in plan.admitted:
            flight = sequence.owner
            flight.start()
        self.is_stalled = not plan.rows and not plan.failed
        if plan.rows:
            self._run(plan.rows)
            self.num_steps += 1
            self.step_seconds += time.perf_counter() - begun
        self._sweep([row.sequence for row in plan.rows] + plan.admitted)

    # ------------------------------------------------------------------------------------- parts

    def _run(self, rows: Sequence[StepRow]) -> None:
        try:
            wanted = self._forward.run(rows)
        except Exception as error:  # whatever a model or a kernel raises
            self._cut(rows, error)
            return
        self._steps_since_refusal += 1
        if self._steps_since_refusal >= _STEPS_UNTIL_LARGER:
            self._steps_since_refusal = 0
            larger = 2 * self.scheduler.max_batch_tokens
            self.scheduler.max_batch_tokens = min(self._most_tokens, larger)
        self.num_tokens += sum(row.count for row in rows)
        for row in rows:
            self.scheduler.commit(row)
        self._read(rows, wanted)
        last = [(i, row.sequence) for i, row in enumerate(rows) if row.is_last]
        last = [(i, s) for i, s in last if not s.owner.is_over]
        if last:
            self._choose(last, wanted)

    def _cut(self, rows: Sequence[StepRow], error: Exception) -> None:
        is_refusal = is_out_of_memory(error)
        num_tokens = sum(row.count for row in rows)
        if is_refusal:
            give_back()
            self._steps_since_refusal = 0
            smaller = max(1, num_tokens // 2)
            if smaller < self.scheduler.max_batch_tokens:
                _log.warning("memory was refused: steps of %d tokens for a while", smaller)
                self.scheduler.max_batch_tokens = smaller
        elif len(rows) > 1:
            _log.warning("a step of %d requests failed and is tried in parts: %s", len(rows), error)
        if len(rows) > 1:
            half = len(rows) // 2
            self._run(rows[:half])
            self._run(rows[half:])
            return
        if is_refusal and num_tokens > 1:
            return  # the next step takes less of it
        if is_refusal:
            refused = OutOfMemoryError(
                "there is no memory for a single token of this request",
                do="start the server with a smaller KV cache or fewer adapter slots",
            )
            refused.__cause__ = error
            self._fail(rows[0].sequence, refused)
            return
        _log.error("a request failed", exc_info=error)
        self._fail(rows[0].sequence, error)

    def _read(self, rows: Sequence[StepRow], wanted: Wanted) -> None:
        """Hand out what the model thinks of prompts."""
        for i, row in enumerate(rows):
            if row.sequence.every_logit:
                flight: Flight = row.sequence.owner
                try:
                    flight.read(row, wanted.of(i))
                except Exception as error:
                    self._fail(row.sequence, error)

    def _choose(self, last: Sequence[tuple[int, SequenceState]], wanted: Wanted) -> None:
        """Choose a token for each of these rows, and tell it."""
        flights: list[Flight] = [sequence.owner for _, sequence in last]
        places = [wanted.starts[i + 1] - 1 for i, _ in last]
        logits = wanted.logits
        if len(places) != logits.shape[0]:
            logits = logits[places]
        try:
            tokens, logprobs = choose(logits, [flight.state for flight in flights])
        except Exception as error:
            if len(last) > 1:  # the others are innocent
                for one in last:
                    self._choose([one], wanted)
                return
            self._fail(last[0][1], error)
            return
        for flight, token, logprob in zip(flights, tokens, logprobs, strict=True):
            try:
                flight.take(token, logprob)
            except Exception as error:
                self._fail(flight.sequence, error)
                continue
            self.num_generated += 1
            self.scheduler.append(flight.sequence, token)

    def _sweep(self, sequences: Sequence[SequenceState]) -> None:
        """Take out whoever ended in this step."""
        for sequence in sequences:
            flight: Flight = sequence.owner
            if flight.is_over:
                self._remove(flight)

    def _fail(self, sequence: SequenceState, error: BaseException) -> None:
        flight: Flight = sequence.owner
        flight.fail(error)
        self._remove(flight)

    def _remove(self, flight: Flight) -> None:
        if not flight.is_removed:
            flight.is_removed = True
            self.scheduler.finish(flight.sequence)
            self._num_over += 1


def _no_adapters(sequence: SequenceState) -> InceError:
    return AdapterError("the adapter cannot be had", got=sequence.adapter)
