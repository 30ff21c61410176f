"""`Speaker`: who answers a conversation, with one of several adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ince.infer import Turn

__all__ = ["AnswerOptions", "Speaker"]


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is written.

    Attributes:
        max_new_tokens: at which it is cut.
        temperature: 0 takes the likeliest token.
        top_p: draw from the likeliest tokens that reach this probability together.
        seed: of what is drawn.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Speaker(Protocol):
    """A base that answers with any of its adapters, which are known by their folders."""

    def load(self, adapter: Path) -> None:
        """Make an adapter ready to answer; one that is ready costs nothing.

        Raises:
            InceError: it cannot answer. The others can, as before.
        """
        ...

    def answer(
        self, conversation: Sequence[Turn], adapter: Path | None, options: AnswerOptions
    ) -> Iterator[str]:
        """Yield the answer in pieces; closing the iterator ends it.

        Args:
            conversation: its last message the user's.
            adapter: that was loaded; None for the base.
            options: of the answer.

        Raises:
            InputError: the conversation leaves no room for an answer, or an option is wrong.
            TemplateError: the model's template cannot render it.
        """
        ...

    def close(self) -> None:
        """Give the model back as it was; more than once is no mistake."""
        ...
