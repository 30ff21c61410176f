"""``POST /v1/chat/completions``."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from ince.serve.engine.events import Finished, Token
from ince.serve.http.asked import Counts, Head, Work, answer, check_size, usage_of
from ince.serve.http.chat_schema import ChatAnswer, ChatRequest
from ince.serve.http.errors import error_responses
from ince.serve.http.generation import Generation
from ince.serve.http.options import sequence_options
from ince.serve.http.service import Service
from ince.serve.http.token_text import TokenTexts
from ince.serve.sampling import TokenLogprob

__all__ = ["chat_routes"]


def chat_routes(service: Service) -> APIRouter:
    """The route, over `service`."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        response_model=ChatAnswer,
        responses={
            200: {
                "description": "The answers; with `stream: true`, their pieces as events.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **error_responses(400, 401, 404, 408, 413, 429, 500, 503),
        },
        tags=["generation"],
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation.

        `model` names an adapter, or the base. `X-Request-Timeout` ends the request after so many
        seconds.
        """
        return await answer(
            service, request, body, lambda: _prepare(service, body), prefix="chatcmpl"
        )

    return router


async def _prepare(service: Service, body: ChatRequest) -> Work:
    num_choices = body.n or 1
    check_size(service, 1, num_choices)
    prompt = await service.prompts.render(
        [{"role": _role(message.role), "content": message.text()} for message in body.messages],
        arguments=body.chat_template_kwargs or {},
        add_generation_prompt=body.add_generation_prompt is not False
        and not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
    )
    most = service.prompts.check_length(len(prompt), body.most_tokens, param="messages")
    options = sequence_options(
        body,
        num_choices=num_choices,
        max_tokens=most,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=await service.grammars.compiled(body),
    )
    form = _Form(body, service.token_texts)
    return Work([prompt], options, form.chunks, form.whole)


def _role(role: str) -> str:
    return "system" if role == "developer" else role


class _Form:
    """Events in the form of chat."""

    def __init__(self, body: ChatRequest, texts: TokenTexts) -> None:
        self._texts = texts
        self._num_choices = body.n or 1
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage

    async def whole(self, head: Head, generation: Generation) -> Mapping[str, Any]:
        counts = Counts()
        pieces: list[list[str]] = [[] for _ in range(self._num_choices)]
        logprobs: list[list[Any]] = [[] for _ in range(self._num_choices)]
        ends: list[Finished | None] = [None] * self._num_choices
        async for index, event in generation.events():
            if isinstance(event, Token):
                pieces[index].append(event.text)
                if event.logprob is not None:
                    logprobs[index].append(self._logprob(event.logprob))
            elif isinstance(event, Finished):
                ends[index] = event
                _count(counts, event)
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(pieces[index]),
                    "refusal": None,
                },
                **_end(ends[index]),
                "logprobs": {"content": logprobs[index], "refusal": None}
                if logprobs[index]
                else None,
            }
            for index in range(self._num_choices)
        ]
        return {**head.fields("chat.completion"), "choices": choices, "usage": usage_of(counts)}

    async def chunks(self, head: Head, generation: Generation) -> AsyncIterator[Mapping[str, Any]]:
        counts = Counts()
        same = head.fields("chat.completion.chunk")
        if self._with_usage:
            same["usage"] = None

        def chunk(index: int, delta: Mapping[str, Any], **more: Any) -> dict[str, Any]:
            choice = {
                "index": index,
                "delta": delta,
                "logprobs": None,
                "finish_reason": None,
                **more,
            }
            return {**same, "choices": [choice]}

        for index in range(self._num_choices):
            yield chunk(index, {"role": "assistant", "content": ""})
        held: list[list[Any]] = [[] for _ in range(self._num_choices)]
        async for index, event in generation.events():
            if isinstance(event, Token):
                if event.logprob is not None:
                    held[index].append(self._logprob(event.logprob))
                if event.text:
                    yield chunk(index, {"content": event.text}, **_logprobs(held, index))
            elif isinstance(event, Finished):
                _count(counts, event)
                yield chunk(index, {}, **_logprobs(held, index), **_end(event))
        if self._with_usage:
            yield {**same, "choices": [], "usage": usage_of(counts)}

    def _logprob(self, found: TokenLogprob) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            return {
                "token": self._texts.text_of(token),
                "logprob": max(logprob, -9999.0),
                "bytes": list(self._texts.bytes_of(token)),
            }

        top = [entry(token, logprob) for token, logprob in found.top]
        return {**entry(found.token, found.logprob), "top_logprobs": top}


def _logprobs(held: list[list[Any]], index: int) -> dict[str, Any]:
    """Those of the tokens since the last chunk: text may be held back, and comes with them."""
    if not held[index]:
        return {}
    content, held[index] = held[index], []
    return {"logprobs": {"content": content, "refusal": None}}


def _count(counts: Counts, event: Finished) -> None:
    # The prompt is one, however many answers it gets.
    counts.prompt = max(counts.prompt, event.prompt_tokens)
    counts.cached = max(counts.cached, event.cached_tokens)
    counts.completion += event.completion_tokens


def _end(event: Finished | None) -> dict[str, Any]:
    assert event is not None
    return {"finish_reason": event.reason, "stop_reason": event.stop_reason}
