"""What both kinds of generation do alike: let a request in, run it, and let it go.

A route makes its body into prompts and options, and events into its own form of answer. What lies
between is here, once: the quota, the model's name, the limits on size, the end of it all.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from ince.errors import DrainingError
from ince.serve.http.errors import ApiError
from ince.serve.http.generation import Generation
from ince.serve.http.sampling_fields import SamplingFields
from ince.serve.http.service import Service, caller_of
from ince.serve.http.sse import ClientLeftError, EventStream, while_connected
from ince.serve.sampling import SamplingOptions

__all__ = ["Counts", "Head", "Work", "answer", "check_size", "usage_of"]

_CLIENT_LEFT = 499


@dataclass(frozen=True)
class Head:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


@dataclass
class Work:
    """A request, ready for the engine.

    Attributes:
        prompts: token ids of each.
        options: of each prompt's answers, one after the other: all of the first prompt's first.
        chunks: events as the chunks of a stream.
        whole: events as one answer.
    """

    prompts: Sequence[Sequence[int]]
    options: Sequence[SamplingOptions]
    chunks: Callable[[Head, Generation], AsyncIterator[Mapping[str, Any]]]
    whole: Callable[[Head, Generation], Awaitable[Mapping[str, Any]]]


@dataclass
class Counts:
    """Tokens of a request."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


def usage_of(counts: Counts) -> dict[str, Any]:
    """OpenAI's object."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }


async def answer(
    service: Service,
    request: Request,
    fields: SamplingFields,
    prepare: Callable[[], Awaitable[Work]],
    *,
    prefix: str,
) -> Response:
    """Answer a request, whole or as a stream.

    Args:
        service: behind the routes.
        request: whose it is.
        fields: of its body.
        prepare: makes the work of it; called once the model is known to be the caller's to use.
        prefix: of the answer's id.
    """
    if service.is_draining:
        raise DrainingError("the server is stopping")
    caller = caller_of(request)
    permit = service.limits.open(caller)
    handed_over = False
    try:
        adapter = service.resolve(caller, fields.model)
        deadline = service.deadline(request)
        permit.begin(adapter)
        work = await prepare()
        generation = service.generate(
            request,
            permit,
            work.prompts,
            work.options,
            adapter=adapter,
            deadline=deadline,
            cache_salt=fields.cache_salt or "",
            streams=bool(fields.stream),
        )
        handed_over = True
    finally:
        if not handed_over:
            permit.close()
    head = Head(
        id=f"{prefix}-{request.state.request_id}",
        created=int(time.time()),
        model=fields.model,
        fingerprint=f"ince-{(adapter or 'base')[:16]}",
    )
    if fields.stream:
        return EventStream(
            work.chunks(head, generation),
            close=generation.close,
            stall_seconds=service.settings.stall_seconds,
        )
    try:
        body = await while_connected(request.receive, work.whole(head, generation))
        return JSONResponse(body)
    except ClientLeftError:
        return Response(status_code=_CLIENT_LEFT)
    finally:
        generation.close()


def check_size(service: Service, num_prompts: int, num_choices: int) -> None:
    """Refuse a request of too many sequences.

    Raises:
        ApiError: naming how many there may be.
    """
    most = service.settings.max_sequences
    if num_prompts * num_choices > most:
        raise ApiError(
            400,
            f"The request asks for {num_prompts * num_choices} answers, and may ask for {most}: "
            "prompts times n.",
            param="n" if num_choices > 1 else "prompt",
            code="too_many_answers",
        )
