"""`SamplingOptions`: what one request asks of the choice of its tokens.

The names, ranges and meanings are OpenAI's, and vLLM's where OpenAI has none. Everything is
checked when it is made: what comes from the network is refused here, by the name that its sender
used, before anything runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from ince.errors import InputError

if TYPE_CHECKING:
    from ince.serve.sampling.grammar import Grammar

__all__ = ["MAX_LOGPROBS", "SamplingOptions"]

MAX_LOGPROBS = 20
_MAX_STOPS = 64
_MAX_STOP_CHARACTERS = 1000
_MAX_BIASES = 1024
_LARGEST_BIAS = 100.0
# Below, a quotient of logits would overflow, and nothing but the likeliest token can be drawn.
_GREEDY_BELOW = 1e-5

_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True)
class SamplingOptions:
    """How the tokens of one answer are chosen, and where it ends.

    Attributes:
        max_tokens: of the answer, at most.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together reach this probability are drawn.
        top_k: only this many likeliest tokens are drawn; 0 or -1 for all.
        min_p: only tokens at least this share as probable as the likeliest are drawn.
        presence_penalty: taken off the logit of every token that the answer has.
        frequency_penalty: taken off once for each time that the answer has it.
        repetition_penalty: divides positive logits, multiplies negative ones, of every token
            that prompt or answer have.
        logit_bias: added to the logits, by token.
        seed: of the random numbers; None for another each time.
        stop: texts that end the answer, and are not part of it.
        stop_token_ids: tokens that end it.
        ignore_eos: whether the model's own end tokens end it.
        logprobs: with each token its log probability and that of so many of the likeliest; 0
            for its own alone. They are the model's, before any option here changes them.
        prompt_logprobs: the same of the prompt's tokens.
        grammar: that the answer follows.

    Raises:
        InputError: a value out of its range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: "Grammar | None" = None

    def __post_init__(self) -> None:
        _check_whole("max_tokens", self.max_tokens, 1, None)
        _check_number("temperature", self.temperature, 0, None)
        _check_number("top_p", self.top_p, 0, 1, above=True)
        _check_whole("top_k", self.top_k, -1, None)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("presence_penalty", self.presence_penalty, -2, 2)
        _check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_number("repetition_penalty", self.repetition_penalty, 0, None, above=True)
        _check_biases(self.logit_bias)
        if self.seed is not None:
            _check_whole("seed", self.seed, -(2**63), 2**64 - 1)
        _check_stops(self.stop)
        for token in self.stop_token_ids:
            _check_whole("stop_token_ids", token, 0, None)
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _check_whole(name, value, 0, MAX_LOGPROBS)
        if self.grammar is not None and self.ignore_eos:
            raise InputError(
                "an answer that follows a grammar ends with it",
                where="ignore_eos",
                do="leave ignore_eos or the response format out",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < _GREEDY_BELOW

    @property
    def changes_logits(self) -> bool:
        """Whether the logits are changed before anything is chosen."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1
            or self.logit_bias
            or self.grammar is not None
        )

    def check_vocabulary(self, num_tokens: int) -> None:
        """Refuse tokens that the model does not have.

        Args:
            num_tokens: of the model's vocabulary.

        Raises:
            InputError: a bias or a stop is for a token beyond it.
        """
        for where, tokens in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
        ):
            strange = [token for token in tokens if token >= num_tokens]
            if strange:
                raise InputError(
                    "the model has no such token",
                    where=where,
                    got=min(strange),
                    expected=f"0 to {num_tokens - 1}",
                )


def _check_whole(name: str, value: object, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is not a whole number", where=name, got=value)
    if value < least or (most is not None and value > most):
        raise _out_of_range(name, value, f"{least} or more" if most is None else f"{least}…{most}")


def _check_number(
    name: str, value: object, least: float, most: float | None, *, above: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is not a number", where=name, got=value)
    is_low = value <= least if above else value < least
    if not math.isfinite(value) or is_low or (most is not None and value > most):
        bound = f"above {least}" if above else f"{least} or more"
        raise _out_of_range(name, value, bound if most is None else f"{bound}, at most {most}")


def _check_biases(biases: Mapping[int, float]) -> None:
    if len(biases) > _MAX_BIASES:
        raise _out_of_range("logit_bias", f"{len(biases)} entries", f"at most {_MAX_BIASES}")
    for token, bias in biases.items():
        _check_whole("logit_bias", token, 0, None)
        _check_number("logit_bias", bias, -_LARGEST_BIAS, _LARGEST_BIAS)


def _check_stops(stops: object) -> None:
    if not isinstance(stops, tuple):
        raise InputError("stop is not a tuple of texts", where="stop", got=stops)
    if len(stops) > _MAX_STOPS:
        raise _out_of_range("stop", f"{len(stops)} texts", f"at most {_MAX_STOPS}")
    for text in stops:
        if not isinstance(text, str) or not text:
            raise InputError(
                "a stop is not a text of at least one character", where="stop", got=text
            )
        if len(text) > _MAX_STOP_CHARACTERS:
            raise _out_of_range(
                "stop", f"{len(text)} characters", f"at most {_MAX_STOP_CHARACTERS}"
            )


def _out_of_range(name: str, value: object, expected: str) -> InputError:
    return InputError(f"{name} is out of range", where=name, got=value, expected=expected)
