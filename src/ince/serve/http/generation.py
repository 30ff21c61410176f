"""One HTTP request's sequences in the engine, as a stream of events on the event loop.

The engine calls its listener on its own thread and must not wait for anybody. So events are put
into a deque, and the loop is woken once for all that came since it last looked. What a slow reader
does not take piles up there: past a bound its sequences are cancelled, since memory is everybody's.

Whoever takes a `Generation` closes it; closing cancels what still runs. A sequence's use of tokens
is written down when the engine says that it ended, whether anybody still listens or not.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from ince.errors import InceError
from ince.serve.engine.events import Event, Failed, Finished, PromptLogprobs, Token
from ince.serve.engine.request import GenerationRequest
from ince.serve.http.errors import ApiError
from ince.serve.http.limits import Permit
from ince.serve.http.metrics import HttpMetrics

__all__ = ["Generation", "GenerationHandle", "RequestEngine"]


class GenerationHandle(Protocol):
    """A sequence that the engine has taken on."""

    def cancel(self) -> None:
        """End it; may be called at any time, from any thread."""
        ...


class RequestEngine(Protocol):
    """What the routes need of `ince.serve.engine.Engine`."""

    def submit(
        self, request: GenerationRequest, listener: Callable[[Event], None]
    ) -> GenerationHandle:
        """Take a request on; `listener` is called on the engine's thread."""
        ...

    def set_tenant_weights(self, weights: Mapping[str, float]) -> None:
        """Share the work between tenants by these from now on; 1 of who is not among them."""
        ...


class Generation:
    """Sequences 0, 1, … of one request, running."""

    def __init__(
        self,
        engine: RequestEngine,
        requests: Sequence[GenerationRequest],
        *,
        permit: Permit,
        metrics: HttpMetrics,
        max_waiting: int,
    ) -> None:
        """Give all to the engine, or none.

        Args:
            engine: that runs them.
            requests: one for each sequence.
            permit: is told what they use, and is closed when the last has ended.
            metrics: are told when tokens come.
            max_waiting: events that may wait to be taken.

        Raises:
            QueueFullError: the engine takes no more now.
            DrainingError: it takes no more at all.
            InputError: a request cannot be run.
        """
        self._loop = asyncio.get_running_loop()
        self._permit = permit
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._events: deque[tuple[int, Event]] = deque()
        self._ready = asyncio.Event()
        self._is_woken = False
        self._is_closed = False
        self._overflowed = False
        self._num_open = 0
        self._begun = time.perf_counter()
        self._last_token: list[float | None] = [None] * len(requests)
        self._handles: list[GenerationHandle] = []
        try:
            for index, request in enumerate(requests):
                self._num_open += 1
                try:
                    self._handles.append(engine.submit(request, self._listener(index)))
                except BaseException:
                    self._num_open -= 1
                    raise
        except BaseException:
            self.close()
            raise

    def _listener(self, index: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:  # on the engine's thread
            if self._is_closed and not isinstance(event, (Finished, Failed)):
                return
            self._events.append((index, event))
            if len(self._events) > self._max_waiting and not self._overflowed:
                self._overflowed = True
                self._wake_soon(self._give_up)
            if not self._is_woken:
                self._is_woken = True
                self._wake_soon(self._wake)

        return hear

    def _wake_soon(self, what: Callable[[], None]) -> None:
        # A loop that is closed has nobody left who waits.
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(what)
            except RuntimeError:
                return

    def _wake(self) -> None:
        self._is_woken = False
        if self._is_closed:
            self._drop()
        else:
            self._ready.set()

    def _give_up(self) -> None:
        self._metrics.slow_readers.inc()
        self._cancel()

    def _drop(self) -> None:
        """Nobody listens: only the ends count."""
        while self._events:
            _, event = self._events.popleft()
            self._note_end(event)

    def _note_end(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._permit.finished(event.prompt_tokens, event.completion_tokens)
            self._metrics.finished(
                self._permit.caller.tenant,
                event.reason,
                event.prompt_tokens,
                event.completion_tokens,
                event.cached_tokens,
            )
        elif not isinstance(event, Failed):
            return
        self._num_open -= 1
        if not self._num_open and self._is_closed:
            self._permit.close()

    def _note_time(self, index: int) -> None:
        now = time.perf_counter()
        last = self._last_token[index]
        if last is None:
            self._metrics.first_token.observe(now - self._begun)
        else:
            self._metrics.inter_token.observe(now - last)
        self._last_token[index] = now

    async def events(self) -> AsyncIterator[tuple[int, PromptLogprobs | Token | Finished]]:
        """What happens, as (sequence, event), until every sequence has ended.

        Raises:
            ApiError: a deadline passed, or the reader was too slow.
            InceError: a sequence failed.
        """
        num_left = len(self._handles)
        while num_left:
            if not self._events:
                self._ready.clear()
                if not self._events:
                    await self._ready.wait()
                continue
            index, event = self._events.popleft()
            self._note_end(event)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                num_left -= 1
                self._check_end(event)
            elif isinstance(event, Token):
                self._note_time(index)
            elif not isinstance(event, PromptLogprobs):
                continue
            yield index, event

    def _check_end(self, event: Finished) -> None:
        if event.reason == "deadline":
            raise ApiError(
                408,
                "The request took longer than it was given.",
                type="timeout_error",
                code="deadline_exceeded",
                headers={"x-should-retry": "false"},
            )
        if event.reason == "cancelled":
            if self._overflowed:
                raise ApiError(
                    408,
                    "The answer was not read as fast as it was written.",
                    type="timeout_error",
                    code="slow_reader",
                )
            raise InceError("the request was cancelled")

    def _cancel(self) -> None:
        for handle in self._handles:
            handle.cancel()

    def close(self) -> None:
        """Cancel what still runs. More than once is no mistake."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._num_open:
            self._cancel()
        self._drop()
        if not self._num_open:
            self._permit.close()
