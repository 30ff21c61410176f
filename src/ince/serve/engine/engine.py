"""`Engine`: takes requests from any thread, runs them on its own, tells what becomes of them.

The thread sleeps while there is nothing to do: it wakes for requests, cancellations, deadlines,
loaded adapters, and to close. A listener is called on that thread and must not wait for anything.
"""

import contextvars
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ince.errors import AdapterError, DrainingError, InputError, QueueFullError
from ince.infer import evaluating
from ince.serve.engine.blocks import BLOCK_SIZE, BlockPool
from ince.serve.engine.capacity import choose_num_blocks, context_length
from ince.serve.engine.events import Event
from ince.serve.engine.flight import Flight
from ince.serve.engine.forward import EngineAdapters, PagedForward, block_bytes, layer_shapes
from ince.serve.engine.proof import prove
from ince.serve.engine.request import GenerationRequest
from ince.serve.engine.runner import Runner
from ince.serve.engine.schedule import Scheduler
from ince.serve.engine.stats import EngineStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Engine", "Handle"]

_log = logging.getLogger("ince.serve")

_MOST_RETRY_SECONDS = 60.0


class Handle:
    """A request that the engine has taken on."""

    def __init__(self, engine: "Engine", flight: Flight) -> None:
        self._engine = engine
        self._flight = flight

    def cancel(self) -> None:
        """End the request, from any thread; nothing happens where it has ended."""
        self._engine.cancel(self._flight)


class Engine:
    """Continuous batching over one model, with an adapter for each request.

    Args:
        model: a causal language model of transformers; the engine's alone until `close`.
        tokenizer: its own.
        adapters: where adapters come from; None for the base only.
        kv_bytes: of the KV cache; None for a share of the free memory.
        max_batch_tokens: of one step.
        max_running: sequences at once; fewer than `max_batch_tokens`.
        max_waiting: requests beyond them that may wait.
        stop_tokens: that end an answer, unless its options ignore them.
        tenant_weights: a tenant of weight 2 gets twice the work of one of weight 1, the default.

    Raises:
        ModelReferenceError: the engine does not compute some layer of the model.
        InputError: a number out of range.
        ProofError: the model's logits are others in the engine than alone.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        adapters: EngineAdapters | None = None,
        kv_bytes: int | None = None,
        max_batch_tokens: int = 512,
        max_running: int = 64,
        max_waiting: int = 1024,
        stop_tokens: frozenset[int] = frozenset(),
        tenant_weights: Mapping[str, float] | None = None,
    ) -> None:
        if max_waiting < 0:
            raise InputError("max_waiting is out of range", got=max_waiting, expected="0 or more")
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._stop_tokens = stop_tokens
        self._most_live = max_running + max_waiting
        self.context_length = context_length(model)
        """Tokens that a sequence may have, prompt and answer together."""
        embeddings: Any = model.get_input_embeddings()
        self._num_tokens: int = embeddings.weight.shape[0]
        self._evaluating = evaluating(model)
        self._evaluating.__enter__()
        try:
            shapes = layer_shapes(model)
            bytes_of_block = block_bytes(shapes, embeddings.weight.dtype)
            num_blocks = choose_num_blocks(
                embeddings.weight.device,
                bytes_of_block,
                kv_bytes=kv_bytes,
                max_running=max_running,
                context=self.context_length,
            )
            self._pool = BlockPool(num_blocks)
            scheduler = Scheduler(
                self._pool,
                max_batch_tokens=max_batch_tokens,
                max_running=max_running,
                adapters=adapters,
                weights=tenant_weights,
            )
            self._forward = PagedForward(model, shapes, num_blocks, adapters)
            prove(model, self._forward, num_blocks)
            self._forward.open()
        except BaseException:
            self._evaluating.__exit__(None, None, None)
            raise
        self._runner = Runner(scheduler, self._forward)
        self._scheduler = scheduler
        self._condition = threading.Condition()
        # What other threads ask for, under the condition's lock.
        self._arrivals: deque[Flight] = deque()
        self._cancels: deque[Flight] = deque()
        self._num_live = 0
        self._is_woken = False
        self._is_draining = False
        self._is_closing = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._seconds_between_ends = 0.1
        self._last_end = time.monotonic()
        if adapters is not None:
            adapters.listen(self._wake)

    # --------------------------------------------------------------------------- from any thread

    def start(self) -> None:
        """Begin to run requests; more than once is no mistake.

        Raises:
            DrainingError: the engine was closed.
        """
        with self._condition:
            if self._is_closing:
                raise _closed()
            if self._thread is None:
                # What the caller set for its context, such as the operators' backend, holds here.
                context = contextvars.copy_context()
                self._thread = threading.Thread(
                    target=context.run, args=(self._loop,), name="ince-engine", daemon=True
                )
                self._thread.start()

    def submit(self, request: GenerationRequest, listener: Callable[[Event], None]) -> Handle:
        """Take a request on.

        Args:
            request: what is asked for.
            listener: told what becomes of it, on the engine's thread; must not wait.

        Raises:
            DrainingError: the engine takes no more requests.
            QueueFullError: it takes no more now.
            InputError: the request cannot be run, whenever it came.
        """
        self.check(request)
        flight = Flight(request, listener, self._tokenizer, self._stop_tokens)
        with self._condition:
            if self._is_closing:
                raise _closed()
            if self._is_draining:
                raise DrainingError("the server is stopping and takes no new requests")
            if self._num_live >= self._most_live:
                wait = self._seconds_between_ends * self._num_live
                raise QueueFullError(
                    "the server has as many requests as it takes on",
                    retry_after=float(min(_MOST_RETRY_SECONDS, max(1.0, math.ceil(wait)))),
                    got=self._num_live,
                    do="try again later",
                )
            self._num_live += 1
            self._arrivals.append(flight)
            self._condition.notify_all()
        return Handle(self, flight)

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that could not be run even if it were alone.

        Raises:
            InputError: its prompt or its answer is too long, or it names tokens that are none.
            AdapterError: it names an adapter and the engine has none.
        """
        options = request.options
        options.check_vocabulary(self._num_tokens)
        if max(request.prompt) >= self._num_tokens:
            raise InputError(
                "the model has no such token",
                where="prompt",
                got=max(request.prompt),
                expected=f"0 to {self._num_tokens - 1}",
            )
        most = len(request.prompt) + options.max_tokens
        if most > self.context_length:
            raise InputError(
                "prompt and answer are longer than the model's context",
                got=f"{len(request.prompt)} tokens and {options.max_tokens} more",
                expected=f"{self.context_length} together",
                do="shorten the prompt, or ask for fewer tokens",
            )
        room = self._pool.num_blocks * BLOCK_SIZE
        if most > room:
            raise InputError(
                "prompt and answer do not fit into the server's KV cache",
                got=f"{len(request.prompt)} tokens and {options.max_tokens} more",
                expected=f"{room} together",
                do="ask for less, or start the server with a larger cache",
            )
        if request.adapter is not None and self._adapters is None:
            raise AdapterError("this server has no adapters", got=request.adapter)

    def cancel(self, flight: Flight) -> None:
        """End a request; `Handle.cancel` calls it."""
        with self._condition:
            if not flight.is_over and not self._is_closed:
                self._cancels.append(flight)
                self._condition.notify_all()

    def set_tenant_weights(self, weights: Mapping[str, float]) -> None:
        """Share the work between tenants by other weights from now on, whoever runs or waits.

        Raises:
            InputError: a weight is out of range; the old ones hold.
        """
        self._scheduler.counters.set_weights(weights)

    def stats(self) -> EngineStats:
        """What there is and what was done."""
        scheduler, runner, pool = self._scheduler, self._runner, self._pool
        waiting = dict(scheduler.waiting.by_adapter)
        with self._condition:
            for flight in self._arrivals:
                adapter = flight.request.adapter
                waiting[adapter] = waiting.get(adapter, 0) + 1
            is_draining = self._is_draining
        return EngineStats(
            running=len(scheduler.running),
            waiting=sum(waiting.values()),
            running_by_adapter=dict(scheduler.running_by_adapter),
            waiting_by_adapter=waiting,
            kv_blocks_used=pool.num_used,
            kv_blocks_total=pool.num_blocks,
            prefix_hit_tokens=scheduler.num_hit_tokens,
            preemptions=scheduler.num_preemptions,
            steps=runner.num_steps,
            tokens=runner.num_tokens,
            generated_tokens=runner.num_generated,
            step_seconds=runner.step_seconds,
            draining=is_draining,
            adapters=None if self._adapters is None else self._adapters.stats(),
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no new requests, and wait until all have ended.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            Whether all have. Without a thread nothing ends, so it does not wait for one.
        """
        with self._condition:
            self._is_draining = True
            if self._thread is None or self._thread is threading.current_thread():
                return self._num_live == 0
            return self._condition.wait_for(lambda: self._num_live == 0, timeout)

    def close(self) -> None:
        """End everything, and give the model back as it was; more than once is no mistake.

        Requests that have not ended fail. From a listener it returns before that is done.
        """
        with self._condition:
            self._is_draining = self._is_closing = True
            thread = self._thread
            self._condition.notify_all()
        if thread is None:
            self._end()
        elif thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------- on the engine's thread

    def _wake(self) -> None:
        with self._condition:
            self._is_woken = True
            self._condition.notify_all()

    def _loop(self) -> None:
        try:
            while self._take_orders():
                try:
                    self._runner.step()
                except Exception as error:  # of the engine itself: its requests end, it does not
                    _log.exception("a step could not be planned; its requests have failed")
                    self._runner.fail_all(error)
                self._count_ends()
        finally:
            self._end()

    def _take_orders(self) -> bool:
        """Sleep until there is something to do; False to stop."""
        runner = self._runner
        with self._condition:
            while not (
                self._is_closing
                or self._arrivals
                or self._cancels
                or self._is_woken
                or runner.has_work
            ):
                deadline = self._scheduler.next_deadline()
                if deadline is None:
                    self._condition.wait()
                elif deadline <= (now := time.monotonic()) or not self._condition.wait(
                    deadline - now
                ):
                    break
            if self._is_closing:
                return False
            if self._is_woken:
                self._is_woken = runner.is_stalled = False
            arrivals, cancels = list(self._arrivals), list(self._cancels)
            self._arrivals.clear()
            self._cancels.clear()
        for flight in arrivals:
            runner.arrive(flight)
        for flight in cancels:
            runner.cancel(flight)
        return True

    def _count_ends(self) -> None:
        count = self._runner.take_over()
        if not count:
            return
        now = time.monotonic()
        seconds = (now - self._last_end) / count
        self._last_end = now
        self._seconds_between_ends += 0.1 * (seconds - self._seconds_between_ends)
        with self._condition:
            self._num_live -= count
            if self._num_live == 0:
                self._condition.notify_all()

    def _end(self) -> None:
        with self._condition:
            if self._is_closed:
                return
            self._is_closed = True
            left = list(self._arrivals)
            self._arrivals.clear()
            self._cancels.clear()
        error = _closed()
        for flight in left:
            flight.fail(error)
        self._runner.fail_all(error)
        self._forward.close()
        self._evaluating.__exit__(None, None, None)
        with self._condition:
            self._num_live = 0
            self._condition.notify_all()


def _closed() -> DrainingError:
    return DrainingError("the engine is closed")
