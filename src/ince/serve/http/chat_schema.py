"""Requests and answers of ``/v1/chat/completions``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ince.serve.http.sampling_fields import SamplingFields
from ince.serve.http.strict import Strict, Text

__all__ = [
    "ChatAnswer",
    "ChatRequest",
    "Choice",
    "TokenLogprobContent",
    "Usage",
]

_MAX_MESSAGES = 10_000
_EMPTY_LIST = Annotated[list[Any], Field(max_length=0)]


class TextPart(Strict):
    """A piece of a message; pictures and sounds are refused by their type."""

    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None
    name: Text | None = Field(None, max_length=512)
    """Of OpenAI's; templates have no place for it."""
    # What an answer has when it is sent back as a turn, where it says nothing.
    refusal: None = None
    tool_calls: _EMPTY_LIST | None = None
    function_call: None = None
    annotations: _EMPTY_LIST | None = None
    audio: None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    def text(self) -> str:
        """All its text."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message has content")
        return self


class ChatRequest(SamplingFields):
    """A conversation to answer."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    """The newer name of `max_tokens`."""
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    # vLLM's
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    """Let the answer go on in the last message instead of beginning one."""
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=64)

    # OpenAI's accounting; no effect
    store: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # What is accepted where it asks for nothing
    tools: _EMPTY_LIST | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: _EMPTY_LIST | None = None
    function_call: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    prediction: None = None
    audio: None = None

    @model_validator(mode="after")
    def _is_a_conversation(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true")
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError("max_tokens and max_completion_tokens are one thing: give one")
        if self.continue_final_message:
            if self.messages[-1].role != "assistant":
                raise ValueError("continue_final_message: the last message is not the assistant's")
            if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
                raise ValueError("continue_final_message and add_generation_prompt exclude another")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of the answer, where the request says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class Usage(BaseModel):
    """Tokens of a request: those of all its prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class TopLogprob(BaseModel):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobContent(TopLogprob):
    """A token that is, and what could have been."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Of each token of an answer."""

    content: list[TokenLogprobContent]
    refusal: None = None


class AnswerMessage(BaseModel):
    """What was said."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatAnswer(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
