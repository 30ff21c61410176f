"""Conversations and documents: the one form in which every data shape reaches the templates."""

from collections.abc import Sequence
from dataclasses import dataclass

from ince.errors import DataError

__all__ = ["ROLES", "Completion", "Conversation", "Document", "Item", "Message"]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (one of `ROLES`) and what is said."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order.

    Attributes:
        messages: the turns.
        source: where it comes from, such as ``train.jsonl, line 12``.
        num_prompt: how many of the first messages are a prompt, of which ``loss_on:
            completion`` learns nothing.
    """

    messages: tuple[Message, ...]
    source: str
    num_prompt: int = 0

    def with_system(self, system: str | None) -> "Conversation":
        """This conversation, with `system` before it when it has no system message."""
        if system is None or any(message.role == "system" for message in self.messages):
            return self
        messages = (Message("system", system), *self.messages)
        return Conversation(messages, self.source, self.num_prompt + 1 if self.num_prompt else 0)

    @property
    def num_system(self) -> int:
        """1 where a system message comes first, else 0."""
        return int(self.messages[:1] != () and self.messages[0].role == "system")

    def part(self, first: int, last: int) -> "Conversation":
        """Messages `first` to `last` (exclusive), after the system message where there is one."""
        kept = self.messages[: self.num_system]
        first = max(first, len(kept))
        num_prompt = min(max(0, self.num_prompt - first), last - first)
        if num_prompt:
            num_prompt += len(kept)
        return Conversation((*kept, *self.messages[first:last]), self.source, num_prompt)

    def to_dicts(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [{"role": m.role, "content": m.content} for m in self.messages]


@dataclass(frozen=True)
class Document:
    """Plain text without turns: all of it is learnt, and then where it ends."""

    text: str
    source: str


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that continues it, without a chat template: the latter is learnt."""

    prompt: str
    text: str
    source: str


Item = Conversation | Document | Completion
"""What a row of a data file becomes."""


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse a conversation that nothing can be learnt from.

    Raises:
        DataError: no assistant turn, one without a user turn before it, an empty turn, or a
            system message that is not the first.
    """
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise DataError("no assistant turn", got=", ".join(roles) or "no messages")
    if "user" not in roles[: roles.index("assistant")]:
        raise DataError("the first assistant turn has no user turn before it")
    if "system" in roles[1:]:
        raise DataError("a system message that is not the first message")
    for number, message in enumerate(messages, start=1):
        if not message.content.strip():
            raise DataError(f"empty {message.role} text", got=f"message {number}")
