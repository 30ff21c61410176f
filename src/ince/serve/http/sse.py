"""Server-sent events to a client that may leave, or stop reading, at any moment.

Starlette's streaming response waits for ever for a client that does not read, and learns that one
has left only when it sends. Here both end the stream, and with it the work behind it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ince.serve.http.errors import api_error

__all__ = ["EventStream", "while_connected"]


def _frame(data: Mapping[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"


class EventStream(Response):
    """Sends each object of `chunks` as one event, then ``[DONE]``.

    A failure in the middle becomes an event with an ``error``, since the status is out by then.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[Mapping[str, Any]],
        *,
        close: Callable[[], None],
        stall_seconds: float,
    ) -> None:
        """Args:
        chunks: the events.
        close: called when the stream has ended, however it did.
        stall_seconds: that one event may take to be taken.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer, as ASGI has it."""
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            self._close()

    async def _write(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            async for chunk in self._chunks:
                await self._send(send, _frame(chunk), more=True)
        except (TimeoutError, OSError):  # it does not read, or is gone
            raise
        except Exception as error:
            await self._send(send, _frame(api_error(error).body()), more=True)
        await self._send(send, b"data: [DONE]\n\n", more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._stall_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Any) -> Any:
    """Await `work`, but no longer than the client waits for it.

    Raises:
        ClientLeftError: it left; `work` was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class ClientLeftError(Exception):
    """Nobody waits for the answer."""
