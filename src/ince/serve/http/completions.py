"""``POST /v1/completions``: texts or token ids, and what follows them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from ince.serve.engine.events import Finished, PromptLogprobs, Token
from ince.serve.http.asked import Counts, Head, Work, answer, check_size, usage_of
from ince.serve.http.completion_schema import CompletionAnswer, CompletionRequest
from ince.serve.http.errors import error_responses
from ince.serve.http.generation import Generation
from ince.serve.http.options import sequence_options
from ince.serve.http.service import Service
from ince.serve.http.token_text import TokenTexts
from ince.serve.sampling import SamplingOptions, TokenLogprob

__all__ = ["completion_routes"]


def completion_routes(service: Service) -> APIRouter:
    """The route, over `service`."""
    router = APIRouter()

    @router.post(
        "/v1/completions",
        response_model=CompletionAnswer,
        responses={
            200: {
                "description": "The continuations; with `stream: true`, their pieces as events.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **error_responses(400, 401, 404, 408, 413, 429, 500, 503),
        },
        tags=["generation"],
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Go on with each prompt.

        `model` names an adapter, or the base. `X-Request-Timeout` ends the request after so many
        seconds.
        """
        return await answer(service, request, body, lambda: _prepare(service, body), prefix="cmpl")

    return router


async def _prepare(service: Service, body: CompletionRequest) -> Work:
    asked, num_choices = body.prompts(), body.n or 1
    check_size(service, len(asked), num_choices)
    prompts: list[list[int]] = []
    for prompt in asked:
        if isinstance(prompt, str):
            special = body.add_special_tokens is not False
            prompts.append(await service.prompts.encode(prompt, special=special))
        else:
            service.prompts.check_tokens(prompt, param="prompt")
            prompts.append(prompt)
    grammar = await service.grammars.compiled(body)
    options: list[SamplingOptions] = []
    for prompt in prompts:
        wanted = 16 if body.max_tokens is None else body.max_tokens
        # Where nothing but the echo is wanted, one token is drawn and not shown.
        most = service.prompts.check_length(len(prompt), max(1, wanted), param="prompt")
        options += sequence_options(
            body,
            num_choices=num_choices,
            max_tokens=most,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
            grammar=grammar,
        )
    echoed: list[str] = []
    if body.echo:
        for prompt, tokens in zip(asked, prompts, strict=True):
            text = prompt if isinstance(prompt, str) else await service.prompts.decode(tokens)
            echoed.append(text)
    form = _Form(body, service.token_texts, prompts, echoed)
    return Work(prompts, options, form.chunks, form.whole)


class _Form:
    """Events in the form of completions."""

    def __init__(
        self,
        body: CompletionRequest,
        texts: TokenTexts,
        prompts: Sequence[Sequence[int]],
        echoed: Sequence[str],
    ) -> None:
        self._texts = texts
        self._prompts = prompts
        self._echoed = echoed
        self._num_choices = body.n or 1
        self._num_answers = len(prompts) * self._num_choices
        self._with_logprobs = body.logprobs is not None
        self._shows_answer = body.max_tokens != 0
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage

    def _echo(self, index: int) -> str:
        return self._echoed[index // self._num_choices] if self._echoed else ""

    async def whole(self, head: Head, generation: Generation) -> Mapping[str, Any]:
        counts = Counts()
        texts = [self._echo(index) for index in range(self._num_answers)]
        pieces: list[list[str]] = [[] for _ in texts]
        lists = [_Logprobs(self._texts) for _ in texts]
        ends: list[dict[str, Any]] = [{} for _ in texts]
        async for index, event in generation.events():
            if isinstance(event, PromptLogprobs):
                prompt = self._prompts[index // self._num_choices]
                lists[index].add_prompt(prompt, event.logprobs)
            elif isinstance(event, Finished):
                ends[index] = self._end(event)
                self._count(counts, index, event)
            elif self._shows_answer:
                pieces[index].append(event.text)
                if event.logprob is not None:
                    lists[index].add(event.logprob)
        choices = [
            {
                "index": index,
                "text": text + "".join(pieces[index]),
                "logprobs": lists[index].fields() if self._with_logprobs else None,
                **ends[index],
            }
            for index, text in enumerate(texts)
        ]
        return {**head.fields("text_completion"), "choices": choices, "usage": usage_of(counts)}

    async def chunks(self, head: Head, generation: Generation) -> AsyncIterator[Mapping[str, Any]]:
        counts = Counts()
        same = head.fields("text_completion")
        if self._with_usage:
            same["usage"] = None
        lists = [_Logprobs(self._texts) for _ in range(self._num_answers)]

        def chunk(index: int, text: str, **more: Any) -> dict[str, Any]:
            choice = {
                "index": index,
                "text": text,
                "logprobs": lists[index].take() if self._with_logprobs else None,
                "finish_reason": None,
                **more,
            }
            return {**same, "choices": [choice]}

        if self._echoed:
            for index in range(self._num_answers):
                yield chunk(index, self._echo(index))
        async for index, event in generation.events():
            if isinstance(event, Finished):
                self._count(counts, index, event)
                yield chunk(index, "", **self._end(event))
            elif isinstance(event, Token) and self._shows_answer:
                if event.logprob is not None:
                    lists[index].add(event.logprob)
                if event.text:
                    yield chunk(index, event.text)
        if self._with_usage:
            yield {**same, "choices": [], "usage": usage_of(counts)}

    def _end(self, event: Finished) -> dict[str, Any]:
        if not self._shows_answer:
            return {"finish_reason": "length", "stop_reason": None}
        return {"finish_reason": event.reason, "stop_reason": event.stop_reason}

    def _count(self, counts: Counts, index: int, event: Finished) -> None:
        if index % self._num_choices == 0:  # a prompt is one, however many answers it gets
            counts.prompt += event.prompt_tokens
            counts.cached += event.cached_tokens
        if self._shows_answer:
            counts.completion += event.completion_tokens


class _Logprobs:
    """The four lists of OpenAI's older form."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._offset = 0
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, prompt: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> None:
        """The prompt's tokens: nothing is said of the first, before which nothing comes."""
        for token, found in zip(prompt, logprobs, strict=True):
            if found is None:
                self._append(token, None, None)
            else:
                self.add(found)

    def add(self, found: TokenLogprob) -> None:
        """One token."""
        self._append(found.token, max(found.logprob, -9999.0), self._top_of(found))

    def _append(self, token: int, logprob: float | None, top: dict[str, float] | None) -> None:
        text = self._texts.text_of(token)
        self._tokens.append(text)
        self._logprobs.append(logprob)
        self._top.append(top)
        self._offsets.append(self._offset)
        self._offset += len(text)

    def _top_of(self, found: TokenLogprob) -> dict[str, float]:
        # Two tokens may have one text; the likelier stands for both. The token itself is among
        # them, as OpenAI has it.
        top: dict[str, float] = {}
        for token, logprob in (*found.top, (found.token, found.logprob)):
            text = self._texts.text_of(token)
            top[text] = max(logprob, -9999.0, top.get(text, -9999.0))
        return top

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }

    def take(self) -> dict[str, Any] | None:
        """As JSON, those since the last time."""
        if not self._tokens:
            return None
        taken = self.fields()
        self._clear()
        return taken
