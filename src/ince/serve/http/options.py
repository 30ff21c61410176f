"""Fields of a request to the options of its sequences."""

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ince.serve.http.errors import ApiError
from ince.serve.http.sampling_fields import SamplingFields
from ince.serve.sampling import SamplingOptions
from ince.serve.sampling.grammar import Grammar, GrammarVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Grammars", "sequence_options"]


def sequence_options(
    fields: SamplingFields,
    *,
    num_choices: int,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> list[SamplingOptions]:
    """Options of each answer to one prompt.

    With a seed, answers are drawn from seeds that follow it: so they differ, and each is the same
    when the request is made again.

    Raises:
        InputError: a value that cannot be used.
    """
    seeds = [None if fields.seed is None else fields.seed + index for index in range(num_choices)]
    shared: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": _or(fields.temperature, 1.0),
        "top_p": _or(fields.top_p, 1.0),
        "top_k": max(0, _or(fields.top_k, 0)),
        "min_p": _or(fields.min_p, 0.0),
        "presence_penalty": _or(fields.presence_penalty, 0.0),
        "frequency_penalty": _or(fields.frequency_penalty, 0.0),
        "repetition_penalty": _or(fields.repetition_penalty, 1.0),
        "logit_bias": {int(token): bias for token, bias in (fields.logit_bias or {}).items()},
        "stop": tuple(fields.stop or ()),
        "stop_token_ids": frozenset(fields.stop_token_ids or ()),
        "ignore_eos": bool(fields.ignore_eos),
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "grammar": grammar,
    }
    return [SamplingOptions(seed=seed, **shared) for seed in seeds]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


class Grammars:
    """Compiles what answers are bound to; the vocabulary is read when the first one is.

    Args:
        tokenizer: of the base.
        num_tokens: that the model has logits of.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", num_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._num_tokens = num_tokens
        self._vocabulary: GrammarVocabulary | None = None
        # One after the other: a schema may be made to take long, and shall not take every thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ince-grammar")

    async def compiled(self, fields: SamplingFields) -> Grammar | None:
        """The grammar that a request asks for, or None; compiled away from the event loop.

        Raises:
            InputError: a schema or an expression that cannot be compiled.
        """
        asked = _asked_form(fields)
        if asked is None:
            return None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._compile, *asked)

    def _compile(self, kind: str, value: Any) -> Grammar:
        if self._vocabulary is None:
            self._vocabulary = GrammarVocabulary(self._tokenizer, self._num_tokens)
        if kind == "json_object":
            return self._vocabulary.json_object()
        if kind == "json_schema":
            return self._vocabulary.json_schema(value)
        if kind == "regex":
            return self._vocabulary.regex(value)
        return self._vocabulary.choice(value)


def _asked_form(fields: SamplingFields) -> tuple[str, Any] | None:
    form = fields.response_format
    if form is not None and form.type == "json_object":
        return "json_object", None
    if form is not None and form.json_schema is not None:
        schema = form.json_schema.schema_
        return ("json_object", None) if schema is None else ("json_schema", schema)
    given = fields.structured_outputs
    if given is not None:
        if given.json_object:
            return "json_object", None
        chosen = (given.json_, given.regex, given.choice)
    else:
        chosen = (fields.guided_json, fields.guided_regex, fields.guided_choice)
    if sum(each is not None for each in chosen) > 1:
        raise ApiError(
            400,
            "structured_outputs: give one of json, regex, choice and json_object.",
            param="structured_outputs",
            code="invalid_value",
        )
    for kind, value in zip(("json_schema", "regex", "choice"), chosen, strict=True):
        if value is not None:
            return kind, _as_schema(value) if kind == "json_schema" else value
    return None


def _as_schema(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "the JSON schema is no JSON object",
            param="guided_json",
            code="invalid_value",
        )
    return value
