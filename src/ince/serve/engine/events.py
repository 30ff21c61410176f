"""What becomes of a request, as its listener is told.

    Started?  PromptLogprobs?  Token*  (Finished | Failed)

Exactly one of the last two comes, and nothing after it. A request that was taken back and computed
anew is not started again.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ince.errors import InceError
from ince.serve.sampling import TokenLogprob

__all__ = ["Event", "Failed", "FinishReason", "Finished", "PromptLogprobs", "Started", "Token"]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Started:
    """The first step of the request is about to run.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: of them, not computed again.
    """

    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class PromptLogprobs:
    """What the model thinks of the prompt: None for its first token, which nothing precedes."""

    logprobs: list[TokenLogprob | None]


@dataclass(frozen=True)
class Token:
    """One token of the answer.

    Attributes:
        token: id; the one that ends the answer comes, too.
        text: what can be shown now that it has come; the texts together are the answer's.
        logprob: where it was asked for.
    """

    token: int
    text: str
    logprob: TokenLogprob | None


@dataclass(frozen=True)
class Finished:
    """The answer is complete, or was ended.

    Attributes:
        reason: ``stop`` by a token or text, ``length`` at the limit, ``cancelled``, ``deadline``.
        stop_reason: the text or token that was asked to end it; None for the model's own.
        prompt_tokens: of the prompt.
        completion_tokens: that came.
        cached_tokens: of the prompt, not computed again.
    """

    reason: FinishReason
    stop_reason: str | int | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Failed:
    """The request could not be answered, or not to its end."""

    error: InceError


Event: TypeAlias = Started | PromptLogprobs | Token | Finished | Failed
