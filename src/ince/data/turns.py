"""Where the assistant's turns stand in the text that a chat template makes.

Templates are programs: they add system messages, trim text, drop earlier reasoning, refuse
roles. So a turn is not guessed from marker strings; it is found by rendering more than once:

1. The conversation up to the turn, with the generation prompt, is what the model is given when
   it has to write that turn. It must be a prefix of the whole text; the turn starts at its end.
2. The turn's own words must follow, all of them; their first may be the prompt's last
   (``<think>``). When the template puts something between (an empty reasoning block), a
   rendering with a placeholder for the words shows where they are.
3. When 1 fails and the template marks replies itself (``{% generation %}``), its marks are taken.

Anything else is a `TemplateError`: a mask that is nearly right trains a model that is not.
"""

import contextlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ince.data.conversation import Conversation, Message
from ince.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "Turn"]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLACEHOLDER = "QzInceReplyStandsHereQz"
_PAIR = (Message("user", "a"), Message("assistant", "b"))
_MOST_GIVEN = 64
_LAST = "train on the last turn alone with loss_on: last"
_MARK = "mark replies with {% generation %} and {% endgeneration %} in the chat template"


@dataclass(frozen=True)
class Turn:
    """An assistant turn in a rendered text, in characters.

    Attributes:
        start: where the model begins to write.
        content_end: where its words end; the stop token comes after.
    """

    start: int
    content_end: int


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        TemplateError: the tokenizer has none.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        try:
            self._source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise TemplateError(
                "the model has no chat template",
                where=tokenizer.name_or_path,
                do="use an instruction-tuned model; or plain text data, or prompts and completions "
                "read with format: plain-completion",
            ) from error

    @cached_property
    def has_marks(self) -> bool:
        """Whether the template marks replies with ``{% generation %}``."""
        return _GENERATION_MARK.search(self._source) is not None

    def render(self, messages: tuple[Message, ...], *, generation_prompt: bool = False) -> str:
        """The text of `messages`; with `generation_prompt`, as far as the reply to come.

        Raises:
            TemplateError: the template refuses them, or fails.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": m.role, "content": m.content} for m in messages],
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        # A template is a program of the model's author: it may raise anything.
        except Exception as error:
            raise TemplateError(
                "the chat template cannot render the conversation",
                got=str(error) or type(error).__name__,
                do="check the order and names of the roles, or leave out system messages",
            ) from error

    def find_turns(
        self, conversation: Conversation, *, from_message: int = 0
    ) -> tuple[str, list[Turn]]:
        """The text of a conversation that ends with an assistant turn, and its turns in it.

        Args:
            conversation: its last message is the assistant's.
            from_message: find the assistant turns from this message on.

        Raises:
            TemplateError: the template cannot render it, changes the assistant's words, or
                does not let its turns be found.
        """
        messages = conversation.messages
        text = self.render(messages)
        every = [i for i, message in enumerate(messages) if message.role == "assistant"]
        indices = [i for i in every if i >= from_message]
        prompts = [self.render(messages[:i], generation_prompt=True) for i in indices]
        if all(text.startswith(prompt) for prompt in prompts):
            pairs = zip(indices, prompts, strict=True)
            return text, [self._turn_after(text, messages, i, prompt) for i, prompt in pairs]
        if not self.has_marks:
            raise TemplateError(
                "the chat template rewrites earlier messages, so replies cannot be found in it",
                do=_LAST if text.startswith(prompts[-1]) else _MARK,
            )
        turns = self._marked_turns(text, messages)
        return text, turns[len(every) - len(indices) :]

    def message_starts(self, text: str, messages: tuple[Message, ...]) -> list[int]:
        """Where in their rendered `text` each message begins, header included; for showing.

        Where a template rewrites what is before a message, its words are taken for its beginning.
        """
        starts: list[int] = []
        for i in range(len(messages)):
            start = starts[-1] if starts else 0
            with contextlib.suppress(TemplateError):
                before = self.render(messages[:i]) if i else text[: self._own_words(text, messages)]
                fits = text.startswith(before)
                start = max(start, len(before) if fits else self._between(text, messages, i)[0])
            starts.append(start)
        return starts

    def _own_words(self, text: str, messages: tuple[Message, ...]) -> int:
        """How much the template says before the first message: a system message of its own."""
        if messages[0].role != "user":
            return 0
        begin, _ = self._between(text, messages, 0)
        before = self.render(_PAIR)
        second = self.render((*_PAIR, Message("user", _PLACEHOLDER)))
        header = second.removeprefix(before).partition(_PLACEHOLDER)[0]
        return begin - len(header) if text[:begin].endswith(header) else 0

    def _turn_after(self, text: str, messages: tuple[Message, ...], i: int, prompt: str) -> Turn:
        """The turn of message `i`, which the model writes after `prompt`."""
        content = messages[i].content
        start = len(prompt)
        for words in (content, content.lstrip(), content.rstrip(), content.strip()):
            if text.startswith(words, start):
                return Turn(start, start + len(words))
        given = _given_words(content, prompt)
        if given and text.startswith(content[given:], start):
            return Turn(start, start + len(content) - given)
        begin, end = self._between(text, messages, i)
        if begin < start or text[begin:end].strip() != content.strip():
            raise _changed_words(content, text[max(begin, start) : end])
        if text[start:begin].strip() and prompt == self.render(messages[:i]):
            raise TemplateError(
                "the chat template has no generation prompt, so a reply has no fixed beginning",
                got=text[start:begin],
                do="add a generation prompt to the model's chat template",
            )
        return Turn(start, end)

    def _between(self, text: str, messages: tuple[Message, ...], i: int) -> tuple[int, int]:
        """Where the content of message `i` is in `text`, by putting a placeholder in its stead."""
        stand_in = (*messages[:i], Message(messages[i].role, _PLACEHOLDER), *messages[i + 1 :])
        before, found, after = self.render(stand_in).partition(_PLACEHOLDER)
        fits = text.startswith(before) and text.endswith(after)
        if not found or not fits or len(before) + len(after) > len(text):
            raise _changed_words(messages[i].content, None)
        return len(before), len(text) - len(after)

    def _marked_turns(self, text: str, messages: tuple[Message, ...]) -> list[Turn]:
        """The turns as the template marks them."""
        # Its declared type is that of other options; these return a mapping.
        encoded: Any = self._tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        whole = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask = [bool(on) for on in encoded["assistant_masks"]]
        offsets = list(whole["offset_mapping"])
        contents = [m.content.strip() for m in messages if m.role == "assistant"]
        firsts = [t for t, on in enumerate(mask) if on and not (t and mask[t - 1])]
        if len(mask) != len(offsets) or len(firsts) != len(contents):
            raise TemplateError(
                "the chat template does not mark one reply for each assistant turn",
                got=f"{len(firsts)} marked",
                expected=f"{len(contents)}",
            )
        turns: list[Turn] = []
        for first, content in zip(firsts, contents, strict=True):
            last = first
            while last + 1 < len(mask) and mask[last + 1]:
                last += 1
            start = int(offsets[first][0])
            marked = text[start : int(offsets[last][1])]
            # A stop token has no words after it, and its own letters must not pass for some.
            place = marked.find(content) if marked.startswith(content) else marked.rfind(content)
            if place < 0:
                raise _changed_words(content, marked)
            turns.append(Turn(start, start + place + len(content)))
        return turns


def _given_words(content: str, prompt: str) -> int:
    """How many first characters of a reply the prompt has said already, as with ``<think>``."""
    longest = min(len(content) - 1, len(prompt), _MOST_GIVEN)
    return next((n for n in range(longest, 0, -1) if prompt.endswith(content[:n])), 0)


def _changed_words(content: str, rendered: str | None) -> TemplateError:
    return TemplateError(
        "the chat template changes the assistant's words (some drop earlier reasoning)",
        got=rendered if rendered else content,
        do=_LAST,
    )
