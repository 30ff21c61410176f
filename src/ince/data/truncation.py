"""Rows that are longer than `max_length`: cut at the end, at the beginning, in parts, or left out.

What stays is an honest row. A conversation loses or is divided by whole exchanges (a user's
turn and the replies to it), and what is kept of it is rendered anew with its system message:
the model sees what it would see if the conversation were that short. So no half of a reply is
ever learnt without its own beginning. Where a single exchange is too long,

- `right` and `split` cut its end: the reply is learnt as far as it goes, without its stop;
- `left` cuts the beginning of the question, and keeps the reply whole.

Plain text is cut into windows of the whole text's tokens. Each begins with what the tokenizer
puts before every text, and with the last token of the window before it, as context: every
token of a text that is split is learnt once, and never as if it were a text's first.

After each, the mask contract holds or the row is refused. What was lost is counted.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ince.data.config import LossOn, Truncation
from ince.data.conversation import Completion, Conversation, Document, Item, Message
from ince.data.encoded import Encoded
from ince.data.example import Example
from ince.data.template import Encoder
from ince.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Fitted", "Lost", "encode", "fit"]

# How far a cut may move on to begin with a word.
_WORD_CHARACTERS = 40


@dataclass(frozen=True)
class Lost:
    """What truncation took away: tokens, those of them to learn, and stop tokens of turns."""

    num_tokens: int = 0
    num_targets: int = 0
    num_stops: int = 0

    def __add__(self, other: "Lost") -> "Lost":
        return Lost(
            self.num_tokens + other.num_tokens,
            self.num_targets + other.num_targets,
            self.num_stops + other.num_stops,
        )


@dataclass(frozen=True)
class Fitted:
    """A row, made to fit.

    Attributes:
        examples: none for a row that is left out; several for one that is split.
        parts: what each example is made of; a conversation's shows where its turns are.
        num_tokens: of the row before truncation.
        lost: of its tokens.
    """

    examples: tuple[Example, ...]
    parts: tuple[Item, ...]
    num_tokens: int
    lost: Lost


def fit(
    item: Item,
    encoder: Encoder,
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
    truncation: Truncation = "right",
) -> Fitted:
    """Encode a row, and make examples of at most `max_length` tokens of it.

    Args:
        item: conversation, document or completion.
        encoder: of the model's tokenizer.
        max_length: most tokens of an example.
        loss_on: which tokens are learnt, see `DataConfig.loss_on`.
        truncation: what to do with what is too long, see `DataConfig.truncation`.

    Raises:
        TemplateError: the chat template cannot render it, or its turns cannot be told apart.
        DataError: nothing to learn is left, or its text contains control tokens.
    """
    whole = encoder.encode(item, loss_on=loss_on)
    if truncation == "drop" and whole.num_tokens > max_length:
        everything = Lost(whole.num_tokens, whole.num_targets, len(whole.turns))
        return Fitted((), (), whole.num_tokens, everything)
    if truncation == "right" or whole.num_tokens <= max_length:
        return _cut_right([item], [whole], max_length, whole.num_tokens)
    if isinstance(item, Document):
        return _windows(item, whole, max_length, all_of_it=truncation == "split")
    if isinstance(item, Completion):
        if truncation == "split":  # One reply to one prompt cannot be divided.
            return _cut_right([item], [whole], max_length, whole.num_tokens)
        return _cut_prompt(item, whole, max_length)

    def encoded(part: Conversation) -> Encoded:
        return encoder.encode(part, loss_on=loss_on)

    if truncation == "left":
        kept = _shorten(item, encoded, loss_on, max_length)
        return _kept_part(kept, encoded(kept), whole, max_length)
    parts = _divide(item, encoded, loss_on, max_length)
    return _cut_right(parts, [encoded(part) for part in parts], max_length, whole.num_tokens)


def encode(
    conversation: Item,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
    truncation: Truncation = "right",
) -> Example:
    """One row as one example; `fit` with an `Encoder` serves many, and splits.

    Args:
        conversation: conversation, document or completion.
        tokenizer: of the model, with its chat template.
        max_length: most tokens of the example.
        loss_on: which tokens are learnt, see `DataConfig.loss_on`.
        truncation: ``right`` and ``left`` cut, ``drop`` raises for what is too long.

    Raises:
        TemplateError: the chat template cannot render it, or its turns cannot be told apart.
        DataError: it is too long, nothing to learn is left, or its text contains control tokens.
    """
    fitted = fit(
        conversation,
        Encoder(tokenizer),
        max_length=max_length,
        loss_on=loss_on,
        truncation=truncation,
    )
    if len(fitted.examples) != 1:
        raise DataError(
            "longer than max_length",
            got=f"{fitted.num_tokens} tokens",
            expected=f"at most {max_length}",
        )
    return fitted.examples[0]


# ------------------------------------------------------------------------------------- the end


def _cut_right(
    parts: Sequence[Item], encoded: Sequence[Encoded], max_length: int, num_tokens: int
) -> Fitted:
    lost = Lost()
    examples: list[Example] = []
    for number, whole in enumerate(encoded, start=1):
        example = whole.truncate(max_length)
        lost += Lost(
            example.num_truncated,
            whole.num_targets - example.num_targets,
            len(whole.turns) - len(example.stops),
        )
        examples.append(_numbered(example, number, len(encoded)))
    return Fitted(tuple(examples), tuple(parts), num_tokens, lost)


def _numbered(example: Example, number: int, num_parts: int) -> Example:
    if num_parts == 1:
        return example
    return replace(example, source=f"{example.source}, part {number} of {num_parts}")


# ------------------------------------------------------------------------------- conversations


def _most(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest number from `low` to `high` for which `holds`; `low` is taken to."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _beginnings(item: Conversation, loss_on: LossOn) -> list[int]:
    """The user messages with which a shorter conversation may begin: something is learnt after."""
    replies = [i for i, message in enumerate(item.messages) if message.role == "assistant"]
    if loss_on == "completion":
        replies = [i for i in replies if i >= item.num_prompt]
    return [i for i, m in enumerate(item.messages) if m.role == "user" and i < replies[-1]]


def _shorten(
    item: Conversation, encoded: Callable[[Conversation], Encoded], loss_on: LossOn, max_length: int
) -> Conversation:
    """The longest end of a conversation that fits, behind its system message.

    Raises:
        DataError: not even the last reply fits behind one letter of its question.
    """
    starts = _beginnings(item, loss_on)
    end = len(item.messages)

    def fits(part: Conversation) -> bool:
        return encoded(part).num_tokens <= max_length

    last = item.part(starts[-1], end)
    if fits(last):
        # As many exchanges as fit, counted from the end.
        num = _most(1, len(starts), lambda n: fits(item.part(starts[-n], end)))
        return item.part(starts[-num], end)
    place = last.num_system
    words = last.messages[place].content

    def with_end_of(num_characters: int) -> Conversation:
        question = Message("user", words[len(words) - num_characters :])
        messages = (*last.messages[:place], question, *last.messages[place + 1 :])
        return replace(last, messages=messages)

    shortest = len(words) - len(words.rstrip()) + 1
    least = encoded(with_end_of(shortest)).num_tokens
    if least > max_length:
        raise DataError(
            "the last reply does not fit into max_length, even after one letter of its question",
            got=f"{least} tokens, max_length is {max_length}",
        )
    num = _most(shortest, len(words), lambda n: fits(with_end_of(n)))
    begun = with_end_of(len(words) - _next_word(words, len(words) - num))
    # Fewer words are not always fewer tokens.
    return begun if fits(begun) else with_end_of(num)


def _next_word(text: str, start: int) -> int:
    """Where a word begins at `start` or soon after it; else where a letter does."""
    near = text[start : start + _WORD_CHARACTERS]
    # Marks belong to the letter before them, and so does what an emoji is joined to.
    marks = next((i for i, c in enumerate(near) if not _continues(c)), 0)
    space = next((i for i, c in enumerate(near) if c.isspace()), None)
    words = "" if space is None else near[space:].lstrip()
    return start + (len(near) - len(words) if words else marks)


def _continues(char: str) -> bool:
    return unicodedata.category(char).startswith("M") or char == "\u200d"


def _kept_part(kept: Conversation, encoded: Encoded, whole: Encoded, max_length: int) -> Fitted:
    cut = max(0, whole.num_tokens - encoded.num_tokens)
    lost = Lost(
        cut,
        max(0, whole.num_targets - encoded.num_targets),
        max(0, len(whole.turns) - len(encoded.turns)),
    )
    example = replace(encoded.truncate(max_length), num_truncated=cut)
    return Fitted((example,), (kept,), whole.num_tokens, lost)


def _divide(
    item: Conversation, encoded: Callable[[Conversation], Encoded], loss_on: LossOn, max_length: int
) -> list[Conversation]:
    """Parts of whole exchanges, each as long as fits; those that teach nothing are left out."""
    messages = item.messages
    starts = [
        i
        for i, message in enumerate(messages)
        if message.role == "user" and (i == 0 or messages[i - 1].role != "user")
    ]
    ends = [*starts[1:], len(messages)]
    first = {
        "last": max(i for i, m in enumerate(messages) if m.role == "assistant"),
        "completion": item.num_prompt,
    }.get(loss_on, 0)
    parts: list[Conversation] = []
    done = 0
    while done < len(starts):
        begin = starts[done]
        num = _most(
            1,
            len(starts) - done,
            lambda n, begin=begin, done=done: (
                encoded(item.part(begin, ends[done + n - 1])).num_tokens <= max_length
            ),
        )
        end = ends[done + num - 1]
        if any(i >= first and messages[i].role == "assistant" for i in range(begin, end)):
            parts.append(item.part(begin, end))
        done += num
    return parts


# ---------------------------------------------------------------------------- without turns


def _windows(item: Document, whole: Encoded, max_length: int, *, all_of_it: bool) -> Fitted:
    """The last window of a text, or all of them."""
    room = max_length - whole.num_start
    if room < 2:
        raise DataError(
            "no token to learn is left within max_length",
            got=f"{whole.num_start} tokens begin every text, max_length is {max_length}",
        )
    length = whole.num_tokens
    if all_of_it:
        # The first window begins with the text itself, the others with the last token before.
        begins = [0, *range(max_length - 1, length - 1, room - 1)]
    else:
        begins = [length - room]
    examples = [
        whole.truncate(max_length)
        if begin == 0
        else whole.window(begin, min(length, begin + room), source=whole.source)
        for begin in begins
    ]
    num_targets = sum(example.num_targets for example in examples)
    num_stops = sum(len(example.stops) for example in examples)
    cut = 0 if all_of_it else length - max_length
    examples = [
        _numbered(replace(example, num_truncated=cut), number, len(examples))
        for number, example in enumerate(examples, start=1)
    ]
    lost = Lost(cut, whole.num_targets - num_targets, len(whole.turns) - num_stops)
    return Fitted(tuple(examples), (item,) * len(examples), length, lost)


def _cut_prompt(item: Completion, whole: Encoded, max_length: int) -> Fitted:
    """The end of the prompt, and the whole completion."""
    room = max_length - whole.num_start
    first = whole.turns[0].first
    if whole.num_tokens - first >= room:
        raise DataError(
            "the completion does not fit into max_length, even after one token of its prompt",
            got=f"{whole.num_tokens - first} tokens, max_length is {max_length}",
        )
    begin = whole.num_tokens - room
    cut = whole.num_tokens - max_length
    example = replace(whole.window(begin, whole.num_tokens, source=whole.source), num_truncated=cut)
    lost = Lost(cut, whole.num_targets - example.num_targets)
    return Fitted((example,), (item,), whole.num_tokens, lost)
