"""The fields of chat and completion requests that say how to draw, and how long.

OpenAI's own fields, and the ones that vLLM added and clients send. A field that ince cannot honor
is refused unless its value asks for nothing; fields that only concern OpenAI's accounting are
accepted and have no effect. Anything else is refused by name: a misspelt option that is silently
dropped is an answer to another question.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ince.serve.http.strict import Finite, Strict, Text, TokenId

__all__ = ["ResponseFormat", "SamplingFields", "StreamOptions", "StructuredOutputs"]

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1_000
_MAX_BIASES = 1_024
_MAX_TOP_K = 2**31 - 1

StopText = Annotated[Text, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]


class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: bool = False
    """Send one more chunk with the number of tokens."""
    include_obfuscation: bool | None = None
    """Of OpenAI's; no effect."""


class JsonSchemaFormat(Strict):
    """A named schema."""

    name: str = Field("schema", max_length=64)
    description: Text | None = Field(None, max_length=10_000)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form that the answer is bound to."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        wanted = self.type == "json_schema"
        if wanted != (self.json_schema is not None):
            raise ValueError("json_schema is for the type json_schema, which needs it")
        return self


class StructuredOutputs(Strict):
    """vLLM's way to bind an answer: one of these."""

    json_: dict[str, Any] | Text | None = Field(None, alias="json")
    regex: Text | None = Field(None, max_length=10_000)
    choice: list[Text] | None = Field(None, min_length=1, max_length=1_000)
    json_object: bool | None = None


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class SamplingFields(Strict):
    """What chat and completions share."""

    model: Text = Field(min_length=1, max_length=512)
    """The name of an adapter, or of the base."""
    n: int | None = Field(1, ge=1, le=128)
    """Answers to each prompt."""
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    temperature: Finite | None = Field(1.0, ge=0, le=100)
    top_p: Finite | None = Field(1.0, gt=0, le=1)
    presence_penalty: Finite | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Finite] | None = Field(
        None, max_length=_MAX_BIASES
    )
    """Token id to what is added to its logit, −100 to 100."""
    stop: (
        Annotated[list[StopText], BeforeValidator(_one_as_list), Field(max_length=_MAX_STOPS)]
        | None
    ) = None
    """Texts at which the answer ends, before them."""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = Field(None, max_length=10_000)
    """Of OpenAI's accounting; no effect."""

    # vLLM's
    top_k: int | None = Field(0, ge=-1, le=_MAX_TOP_K)
    """Draw from so many of the likeliest tokens; 0 or −1: from all."""
    min_p: Finite | None = Field(0.0, ge=0, le=1)
    """Draw from tokens at least so likely, relative to the likeliest."""
    repetition_penalty: Finite | None = Field(1.0, gt=0, le=100)
    ignore_eos: bool | None = False
    """Write on after the token that ends an answer."""
    stop_token_ids: list[TokenId] | None = Field(None, max_length=256)
    cache_salt: Text | None = Field(None, max_length=512)
    """Requests share cached prefixes only where this is the same."""
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = Field(None, max_length=10_000)
    guided_choice: list[Text] | None = Field(None, min_length=1, max_length=1_000)

    # What is accepted where it asks for nothing
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    min_tokens: Literal[0] | None = None
    priority: Literal[0] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        for bias in (self.logit_bias or {}).values():
            if not -100 <= bias <= 100:
                raise ValueError("logit_bias: a bias is from -100 to 100")
        binding = [
            self.response_format if self.response_format_binds else None,
            self.structured_outputs,
            self.guided_json,
            self.guided_regex,
            self.guided_choice,
        ]
        if sum(each is not None for each in binding) > 1:
            raise ValueError("an answer has one form: give one of response_format, guided_*")
        return self

    @property
    def response_format_binds(self) -> bool:
        """Whether it asks for more than text."""
        return self.response_format is not None and self.response_format.type != "text"
