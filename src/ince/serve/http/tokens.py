"""``POST /tokenize`` and ``/detokenize``, as vLLM has them."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from ince.serve.http.chat_schema import ChatMessage
from ince.serve.http.errors import error_responses
from ince.serve.http.service import Service, caller_of
from ince.serve.http.strict import Strict, Text, TokenId

__all__ = ["token_routes"]

_MAX_TOKENS = 1_000_000


class TokenizeRequest(Strict):
    """A text or a conversation."""

    model: Text | None = Field(None, min_length=1, max_length=512)
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=10_000)
    add_special_tokens: bool | None = True
    """Of a text."""
    add_generation_prompt: bool | None = True
    """Of a conversation."""
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _is_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages, not both")
        return self


class TokenizeAnswer(BaseModel):
    """Token ids."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """Token ids."""

    model: Text | None = Field(None, min_length=1, max_length=512)
    tokens: list[TokenId] = Field(max_length=_MAX_TOKENS)


class DetokenizeAnswer(BaseModel):
    """Their text."""

    prompt: str


def token_routes(service: Service) -> APIRouter:
    """The routes, over `service`."""
    router = APIRouter(tags=["tokens"])

    @router.post(
        "/tokenize",
        responses={200: {"model": TokenizeAnswer}, **error_responses(400, 401, 404, 413)},
    )
    async def tokenize(body: TokenizeRequest, request: Request) -> Any:
        """A text, or a conversation in the model's template, as token ids."""
        if body.model is not None:
            service.resolve(caller_of(request), body.model)
        if body.messages is not None:
            tokens = await service.prompts.render(
                [{"role": message.role, "content": message.text()} for message in body.messages],
                arguments={},
                add_generation_prompt=body.add_generation_prompt is not False,
            )
        else:
            tokens = await service.prompts.encode(
                body.prompt or "", special=body.add_special_tokens is not False
            )
        return {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": service.settings.context_length,
            "token_strs": [service.token_texts.text_of(token) for token in tokens]
            if body.return_token_strs
            else None,
        }

    @router.post(
        "/detokenize",
        responses={200: {"model": DetokenizeAnswer}, **error_responses(400, 401, 404, 413)},
    )
    async def detokenize(body: DetokenizeRequest, request: Request) -> Any:
        """Token ids as text, special tokens included."""
        if body.model is not None:
            service.resolve(caller_of(request), body.model)
        service.prompts.check_tokens(body.tokens, param="tokens")
        return {"prompt": await service.prompts.decode(body.tokens)}

    return router
