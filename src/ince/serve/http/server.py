"""Running the application until somebody asks it to stop.

The first SIGTERM (or Ctrl-C) begins to drain: what runs or waits is finished, new requests get 503,
``/ready`` says so, and then the server ends. The second one, or the end of the time to drain, cuts
what is left: each of its clients is told, accounts are written, and the server ends as after the
first. The third one ends the process where it stands.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from ince.errors import InputError
from ince.serve.http.app import service_of

__all__ = ["DrainingServer", "bind", "make_server"]

_LOG = logging.getLogger("ince.serve")
_CLOSE_SECONDS = 5
# Once what ran was cut: for the words that say so.
_CUT_SECONDS = 1


class Drained(Protocol):
    """What the server needs of the engine when it stops."""

    def drain(self, timeout: float) -> bool:
        """Finish what there is, refuse what comes; True when all was finished."""
        ...

    def close(self) -> None:
        """End what there is; its requests fail."""
        ...


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which stops in two steps."""

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, engine: Drained, seconds: float
    ) -> None:
        super().__init__(config)
        self._service = service_of(app)
        self._engine = engine
        self._seconds = seconds
        self._drain: asyncio.Task[None] | None = None
        self._cut: asyncio.Task[None] | None = None
        self._is_hurried = False
        self.has_cut = False
        """Requests were ended that had not finished."""
        self.on_ready: Callable[[], None] | None = None
        """Called once, when requests are taken."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        if self.on_ready is not None:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; the second time, cut what is left; the third time, be gone."""
        name = signal.Signals(sig).name
        if self._is_hurried:
            # Whoever asks three times does not want to wait for threads and answers.
            sys.stderr.flush()
            os._exit(1)
        if self._service.is_draining:
            _LOG.warning("%s again: ending what runs", name)
            self._is_hurried = True
        else:
            _LOG.warning("%s: finishing what runs, then stopping", name)
            self.begin_to_drain()

    def begin_to_drain(self) -> None:
        """Take no new requests, and stop when the last one has its answer."""
        self._service.is_draining = True
        self._service.metrics.draining.set(1)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._service.is_draining and self._drain is None:
            self._drain = asyncio.create_task(self._finish())
        if self._is_hurried and self._cut is None:
            self._cut = asyncio.create_task(self._cut_off())
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        try:
            if not await asyncio.to_thread(self._engine.drain, self._seconds):
                _LOG.warning("the time to finish is over: ending what runs")
                await self._cut_off()
            elif self._cut is not None:
                await self._cut
        except Exception:
            _LOG.exception("the engine could not be drained")
        self.should_exit = True

    async def _cut_off(self) -> None:
        self.config.timeout_graceful_shutdown = _CUT_SECONDS
        self.has_cut = not await asyncio.to_thread(self._engine.drain, 0) or self.has_cut
        await asyncio.to_thread(self._engine.close)


def bind(host: str, port: int) -> socket.socket:
    """A socket to listen on, for `DrainingServer.run`.

    Args:
        host: name or address.
        port: 0 for any free one.

    Raises:
        InputError: the address is not this machine's, or the port is in use.
    """
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise InputError(
            "the server cannot listen here",
            where=f"{host}:{port}",
            got=error.strerror or str(error),
            do="choose another --host or --port; --port 0 takes any that is free",
        ) from error
    return bound


def make_server(app: FastAPI, engine: Drained, *, drain_seconds: float = 600.0) -> DrainingServer:
    """A server that is ready to `run` on the sockets that `bind` gave.

    Args:
        app: of `create_app`.
        engine: to be drained when the server is to stop.
        drain_seconds: that what runs may take once the server is to stop.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # ours has no query, and a tenant
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    return DrainingServer(config, app, engine, drain_seconds)
