"""`Grammar`: answers that follow a JSON schema, a regular expression or a list of choices.

The parser is llguidance's: it says after each token which may come next. This module compiles what
a request asks for, and refuses what cannot be compiled before anything runs. Each answer has a
state of its own; a grammar is compiled once for all of a request's answers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ince.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Grammar", "GrammarState", "GrammarVocabulary"]

_MAX_CHARACTERS = 100_000
_MAX_CHOICES = 1000
_ANY_OBJECT: Mapping[str, object] = {"type": "object"}
# Neither "x": 1 with any number of spaces for ever, nor none at all: what models write.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarVocabulary:
    """A tokenizer in the form in which grammars see it; made once for a server.

    Args:
        tokenizer: of the model.
        num_tokens: that the model has logits of; more than the tokenizer's where they are padded.

    Raises:
        InputError: the parser is not installed, or the tokenizer is of a kind it does not know.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", num_tokens: int) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise InputError(
                "answers that follow a grammar need a package that is not installed",
                got=str(error),
                do="pip install 'ince[serve]'",
            ) from error
        try:
            fast: Any = tokenizer  # another kind is refused
            self._inner: Any = llguidance.hf.from_tokenizer(fast, n_vocab=num_tokens)
        except Exception as error:  # of another library, which names no class for it
            raise InputError(
                "the model's tokenizer cannot be used with grammars", got=str(error)
            ) from error
        self.num_tokens = num_tokens

    def json_schema(self, schema: Mapping[str, Any] | bool) -> "Grammar":
        """Answers are JSON that a schema describes.

        Raises:
            InputError: no schema, one that cannot be compiled, or one too large.
        """
        matcher = _matcher_class()
        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _refused("the JSON schema is no JSON", error) from error
        _check_size(text)
        try:
            grammar = matcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
        except ValueError as error:
            raise _refused("the JSON schema cannot be used", error) from error
        return Grammar(self, grammar)

    def json_object(self) -> "Grammar":
        """Answers are JSON objects, whatever is in them."""
        return self.json_schema(_ANY_OBJECT)

    def regex(self, expression: str) -> "Grammar":
        """Answers match a regular expression as a whole.

        Raises:
            InputError: it cannot be compiled.
        """
        _check_size(expression)
        return Grammar(self, _matcher_class().grammar_from_regex(expression))

    def choice(self, choices: Sequence[str]) -> "Grammar":
        """Answers are one of these texts.

        Raises:
            InputError: there are none, or too many.
        """
        if not choices or len(choices) > _MAX_CHOICES or not all(choices):
            raise InputError(
                "an answer is chosen from a list of texts",
                where="choice",
                got=f"{len(choices)} texts, {sum(not each for each in choices)} of them empty",
                expected=f"1 to {_MAX_CHOICES} texts that are not empty",
            )
        _check_size("".join(choices))
        # Texts in JSON's form are texts in Lark's; an astral character is written as itself.
        lark = "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
        return Grammar(self, _matcher_class().grammar_from_lark(lark))

    def matcher(self, grammar: str) -> Any:
        """A parser at the beginning of `grammar`."""
        return _matcher_class()(self._inner, grammar, log_level=0)


class Grammar:
    """One compiled grammar; `GrammarVocabulary` makes them.

    Args:
        vocabulary: of the model.
        grammar: in the parser's form.

    Raises:
        InputError: it cannot be compiled.
    """

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str) -> None:
        self._first: Any = vocabulary.matcher(grammar)
        self._vocabulary = vocabulary
        # Compilation is lazy in parts: a first mask shows what is wrong in them.
        if not self._first.is_error():
            self._first.compute_bitmask()
        if self._first.is_error():
            raise _refused("the grammar cannot be used", self._first.get_error())

    def start(self) -> "GrammarState":
        """The state of a new answer."""
        return GrammarState(self._first.deep_copy(), self._vocabulary.num_tokens)


class GrammarState:
    """Where an answer stands in its grammar.

    Args:
        matcher: of its own, at the beginning.
        num_tokens: of the model's logits.
    """

    def __init__(self, matcher: Any, num_tokens: int) -> None:
        self._matcher = matcher
        self._num_tokens = num_tokens

    @property
    def is_over(self) -> bool:
        """Whether nothing but the end can come."""
        return bool(self._matcher.is_stopped())

    def add(self, token: int) -> None:
        """Go on by a token of the answer, one that `mask` left."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def mask(self, logits_V: Tensor) -> None:
        """Make the logits of tokens that cannot come minus infinity, in place.

        Raises:
            InputError: the parser gave up, as on a grammar that is too hard for it.
        """
        mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _refused("the answer cannot go on by its grammar", self._matcher.get_error())
        bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8)
        allowed = (bits[:, None].bitwise_right_shift(shifts) & 1).bool().flatten()
        num = min(len(allowed), len(logits_V))
        logits_V[:num].masked_fill_(~allowed[:num].to(logits_V.device), -torch.inf)
        logits_V[num:] = -torch.inf


def _matcher_class() -> Any:
    import llguidance

    return llguidance.LLMatcher


def _check_size(text: str) -> None:
    if len(text) > _MAX_CHARACTERS:
        raise InputError(
            "the grammar is too large",
            got=f"{len(text)} characters",
            expected=f"at most {_MAX_CHARACTERS}",
        )


def _refused(what: str, error: object) -> InputError:
    # The parser's messages go on with a dump of the whole grammar.
    return InputError(what, got=str(error).partition("\n")[0] or repr(error))
