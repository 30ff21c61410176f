"""What stands before every route: whose page asks, with which key, and how much comes.

Plain ASGI around the application, so that a body is not read for a caller who may not send one.
From the outside in:

    Observed        request id, security headers, one log line and the counters of each request
    SameOrigin      no page of another origin, no other host name, no flood of headers
    Authenticated   the key becomes a `Caller`; without one nothing but the open paths answers
    Bounded         bodies that are too large or that do not come
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ince.serve.http.errors import ApiError, error_response
from ince.serve.http.tenants import LOCAL, Caller, Tenants

__all__ = ["Authenticated", "Bounded", "Observed", "SameOrigin"]

_LOG = logging.getLogger("ince.serve.access")
_MAX_PATH_SHOWN = 200
_MAX_KEY_CHARACTERS = 512
_MAX_HEADER_BYTES = 64 * 1024


class Observed:
    """Times, counts and logs every request; neither bodies, nor queries, nor headers are logged."""

    def __init__(
        self, app: ASGIApp, *, observe: Callable[[str, str, int, float, str], None]
    ) -> None:
        """Args:
        app: what answers.
        observe: told method, route, status, seconds and tenant of each.
        """
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(12)
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            # Starlette answers for a fault and raises it again; it was logged by then.
            if not status:
                await error_response(error)(scope, receive, sent)
        finally:
            seconds = time.perf_counter() - begun
            caller: Caller | None = state.get("caller")
            tenant = "" if caller is None else caller.tenant
            route = getattr(scope.get("route"), "path", "none")
            self._observe(scope["method"], route, status, seconds, tenant)
            _LOG.info(
                "%s %s %s %d %.0f ms tenant=%s",
                state["request_id"],
                ascii(scope["method"])[1:-1],
                ascii(scope["path"])[1:-1][:_MAX_PATH_SHOWN],
                status,
                seconds * 1000,
                ascii(tenant)[1:-1] or "-",
            )


class SameOrigin:
    """Refuses pages of other origins, and names of the host that are not its own."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        if sum(len(name) + len(value) for name, value in headers.raw) > _MAX_HEADER_BYTES:
            return ApiError(431, "The headers are too large.", code="headers_too_large")
        host = headers.get("host", "")
        if self._hosts and _without_port(host) not in self._hosts:
            return ApiError(421, "This server does not answer to that host.", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit_netloc(origin) != host.lower():
            return ApiError(403, "Pages of other origins are refused.", code="wrong_origin")
        return None


def urlsplit_netloc(origin: str) -> str | None:
    """Host and port of an origin, or None for what is none."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


def _without_port(host: str) -> str:
    host = host.lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


class Authenticated:
    """Puts the `Caller` of a request into its state; 401 for who has no key."""

    def __init__(
        self, app: ASGIApp, *, tenants: Tenants | None, open_paths: frozenset[str]
    ) -> None:
        self._app = app
        self._tenants = tenants
        self._open_paths = open_paths
        # Hashing a key takes time on purpose; it must not take the loop's, nor all processors.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="ince-keys")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            caller = await self._caller(Headers(scope=scope))
            if caller is None:
                refusal = ApiError(
                    401,
                    "No API key, or a wrong one: send it as 'Authorization: Bearer KEY'.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error_response(refusal)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _caller(self, headers: Headers) -> Caller | None:
        if self._tenants is None or not self._tenants.wants_keys():
            return LOCAL
        given = headers.getlist("authorization")
        if len(given) != 1:
            return None
        scheme, _, secret = given[0].partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret or len(secret) > _MAX_KEY_CHARACTERS:
            return None
        known = self._tenants.known(secret)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._tenants.authenticate, secret)


class Bounded:
    """Stops bodies that are larger than their route takes, or that stop coming."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        larger: dict[str, int],
        stall_seconds: float,
    ) -> None:
        """Args:
        app: what answers.
        max_bytes: of a body.
        larger: of the bodies of some paths, when they are an administrator's.
        stall_seconds: between two pieces of a body.
        """
        self._app = app
        self._max_bytes = max_bytes
        self._larger = larger
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller: Caller | None = scope.get("state", {}).get("caller")
        most = self._max_bytes
        if caller is not None and caller.is_admin:
            most = self._larger.get(scope["path"], most)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            await error_response(_too_large(most))(scope, receive, send)
            return
        received = 0
        whole = False

        async def bounded() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._stall_seconds)
            except TimeoutError:
                raise HTTPException(408, "The body did not come.", _CLOSE) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if received > most:
                    raise HTTPException(413, _too_large_text(most), _CLOSE)
            return message

        await self._app(scope, bounded, send)


_CLOSE: Any = {"Connection": "close"}


def _too_large_text(most: int) -> str:
    return f"The body is too large: this route takes {most} bytes."


def _too_large(most: int) -> ApiError:
    return ApiError(413, _too_large_text(most), code="body_too_large", headers=_CLOSE)
