"""Failures as OpenAI's clients read them: ``{"error": {message, type, param, code}}``.

One place decides which failure is which status, so that no route can answer in another form.
Messages of ince's own errors are shown where the caller's input is at fault; what goes wrong
inside is logged and shown as an internal error, without detail.
"""

import errno
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ince.errors import (
    DiskFullError,
    DrainingError,
    InceError,
    InputError,
    QueueFullError,
    did_you_mean,
)

__all__ = [
    "ApiError",
    "ErrorBody",
    "ErrorDetail",
    "add_error_handlers",
    "api_error",
    "error_response",
    "error_responses",
    "unknown_model",
]

_LOG = logging.getLogger(__name__)

_INVALID = "invalid_request_error"
_MAX_PROBLEMS = 8


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A failure with its status; `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = _INVALID,  # noqa: A002 - the field's name
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": self.detail.model_dump()}


def unknown_model(name: str) -> ApiError:
    """No such model, or none that the caller may know of: the two are one answer."""
    return ApiError(
        404,
        f"The model {name[:200]!r} does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def api_error(error: BaseException) -> ApiError:
    """Any failure as one of the routes'."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            str(error),
            type="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(max(1, math.ceil(error.retry_after)))},
        )
    if isinstance(error, DrainingError):
        return ApiError(
            503,
            "The server is stopping and takes no new requests.",
            type="server_error",
            code="draining",
            headers={"Retry-After": "5", "Connection": "close"},
        )
    if isinstance(error, InputError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, DiskFullError):
        return ApiError(507, error.what, type="server_error", code="disk_full")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _LOG.error("the disk is full", exc_info=error)
        return ApiError(507, "The disk is full.", type="server_error", code="disk_full")
    if isinstance(error, InceError):
        _LOG.error("a request failed: %s", error)
        return ApiError(500, error.what, type="server_error", code="failed")
    _LOG.error("a fault in the server", exc_info=error)
    return ApiError(500, "The server had an error.", type="server_error", code="internal_error")


def error_response(error: BaseException) -> JSONResponse:
    """The answer that a failure gets."""
    known = api_error(error)
    return JSONResponse(known.body(), known.status, headers=known.headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an OpenAPI document says of a route's failures."""
    texts = {
        400: "The request cannot be carried out as it stands.",
        401: "No API key, or a wrong one.",
        403: "The key may not do this.",
        404: "No such model, or none that this key may use.",
        405: "Not with this method.",
        408: "The request took longer than it was given.",
        413: "The body is too large.",
        415: "The body is of another type than the route takes.",
        429: "Too many requests or tokens; `Retry-After` says when to ask again.",
        500: "A fault in the server.",
        503: "The server is not ready, or is stopping.",
        507: "The disk is full.",
    }
    return {
        status: {"model": ErrorBody, "description": texts[status]} for status in sorted(statuses)
    }


# How pydantic names the members of a union, which the caller has never heard of.
_MEMBERS = frozenset({"texts", "tokens", "token lists", "str", "int", "bool", "float", "dict"})


def _place(location: Sequence[Any]) -> str:
    text = ""
    for part in location[1:]:  # the first says where it was: body, query, path or header
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _MEMBERS and "[" not in part and (text, part) != ("prompt", "text"):
            text += f".{part}" if text else str(part)
    return text


def _validation_error(error: RequestValidationError, known: Sequence[str]) -> ApiError:
    problems: list[str] = []
    first: str | None = None
    found = error.errors()
    for each in found[:_MAX_PROBLEMS]:
        place = _place(each.get("loc", ()))
        first = place if first is None else first
        kind = each.get("type", "")
        if kind == "json_invalid":
            reason = each.get("ctx", {}).get("error", "")
            problems.append(f"the body is not valid JSON: {reason}")
        elif kind == "extra_forbidden":
            near = did_you_mean(place, known)
            problems.append(f"{place}: unknown field" + (f"; {near}" if near else ""))
        else:
            text = str(each.get("msg", "invalid")).removeprefix("Value error, ")
            problems.append(f"{place}: {text}" if place else text)
    if len(found) > _MAX_PROBLEMS:
        problems.append(f"and {len(found) - _MAX_PROBLEMS} more")
    message = "; ".join(problems).encode("utf-8", "backslashreplace").decode()
    return ApiError(400, message[:2000], param=first or None, code="invalid_value")


def _known_fields(request: Request) -> list[str]:
    route: Any = request.scope.get("route")
    field = getattr(route, "body_field", None)
    info: Any = getattr(getattr(field, "field_info", None), "annotation", None)
    return list(getattr(info, "model_fields", ()))


def add_error_handlers(app: FastAPI) -> None:
    """Let every failure of `app` have the one form."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(_validation_error(error, _known_fields(request)))

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = {
            404: "There is no such route.",
            405: "This route does not take this method.",
        }.get(error.status_code, str(error.detail))
        code = {
            404: "unknown_route",
            405: "method_not_allowed",
            408: "body_timeout",
            413: "body_too_large",
        }.get(error.status_code)
        status = 400 if error.status_code == 422 else error.status_code
        return error_response(ApiError(status, message, code=code, headers=error.headers))

    async def known(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(InceError, known)
    app.add_exception_handler(Exception, known)
