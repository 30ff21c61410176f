"""Requests and answers of ``/v1/completions``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from ince.serve.http.chat_schema import Usage
from ince.serve.http.sampling_fields import SamplingFields
from ince.serve.http.strict import Text, TokenId

__all__ = ["CompletionAnswer", "CompletionRequest"]

_MAX_PROMPTS = 2_048

_Tokens = Annotated[list[TokenId], Field(min_length=1)]


def _kind(value: Any) -> str:
    """Which of the four forms a prompt has; decided by its first element, not by trying all."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value:
        if isinstance(value[0], str):
            return "texts"
        if isinstance(value[0], list):
            return "token lists"
    return "tokens"


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1, max_length=_MAX_PROMPTS), Tag("texts")]
    | Annotated[_Tokens, Tag("tokens")]
    | Annotated[list[_Tokens], Field(min_length=1, max_length=_MAX_PROMPTS), Tag("token lists")],
    Discriminator(_kind),
]


class CompletionRequest(SamplingFields):
    """Texts, or their token ids, to go on with."""

    prompt: Prompt
    max_tokens: int | None = Field(16, ge=0, le=2**31 - 1)
    """0 is for `echo` alone."""
    echo: bool | None = False
    """Begin the answer with the prompt; with `logprobs`, of its tokens too."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """So many alternatives to each token."""
    add_special_tokens: bool | None = True
    """vLLM's: put around a text what the model expects there."""

    # What is accepted where it asks for nothing
    suffix: Literal[""] | None = None
    best_of: int | None = Field(None, ge=1, le=128)

    @model_validator(mode="after")
    def _can_be_done(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: ince draws as many as it returns; leave it out or give n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 is for echo: true")
        if self.echo and self.stream and self.logprobs is not None:
            raise ValueError("echo with logprobs cannot be streamed")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """Each of them."""
        prompt: Any = self.prompt
        return prompt if _kind(prompt) in ("texts", "token lists") else [prompt]


class CompletionLogprobs(BaseModel):
    """Of each token; lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = None
    logprobs: CompletionLogprobs | None = None


class CompletionAnswer(BaseModel):
    """The continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
