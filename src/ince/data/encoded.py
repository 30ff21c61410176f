"""A whole row in tokens, before truncation: what is learnt of it, and where its turns stop."""

from dataclasses import dataclass

from ince.data.contract import check_example
from ince.data.example import Example
from ince.errors import DataError, TemplateError

__all__ = ["Encoded", "TurnTokens"]


@dataclass(frozen=True)
class TurnTokens:
    """A turn that is learnt, in tokens: from `first` to `stop`, both included."""

    first: int
    stop: int


@dataclass(frozen=True)
class Encoded:
    """A conversation, document or completion in tokens.

    Attributes:
        input_ids, targets: as in `Example`.
        turns: what ends with a stop token that has to be learnt: turns of a conversation, a
            completion, a document.
        source: where it comes from.
        num_start: tokens with which the model begins every text, such as ``<s>``.
    """

    input_ids: tuple[int, ...]
    targets: tuple[bool, ...]
    turns: tuple[TurnTokens, ...]
    source: str
    num_start: int = 0

    @property
    def num_tokens(self) -> int:
        """Length before truncation."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss, before truncation."""
        return sum(self.targets)

    def truncate(self, max_length: int) -> Example:
        """The first `max_length` tokens, with the mask contract checked on them.

        A turn that is cut is learnt as far as it goes: each of its tokens has what came before
        it. Its stop token is gone, and is not among `Example.stops`.

        Raises:
            DataError: nothing that could be learnt is left.
            TemplateError: a turn that is kept whole would not learn its stop token.
        """
        targets = self.targets[:max_length]
        if not any(targets):
            first = next((i for i, target in enumerate(self.targets) if target), None)
            raise DataError(
                "no token to learn is left within max_length",
                got=f"the first reply begins after {first} tokens, max_length is {max_length}"
                if first is not None
                else "nothing to learn",
            )
        for turn in self.turns:
            if turn.stop < max_length and not all(targets[turn.first : turn.stop + 1]):
                raise TemplateError("a turn would not learn its words and its stop token")
        example = Example(
            self.input_ids[:max_length],
            targets,
            self.source,
            max(0, self.num_tokens - max_length),
            tuple(turn.stop for turn in self.turns if turn.stop < max_length),
        )
        check_example(example)
        return example

    def window(self, first: int, last: int, *, source: str) -> Example:
        """Tokens `first` to `last` (exclusive) behind those that begin every text.

        The token at `first` comes without what was before it, so it is context and not learnt.

        Raises:
            DataError, TemplateError: as of `truncate`.
        """
        kept = range(first, last)
        start = self.num_start
        example = Example(
            (*self.input_ids[:start], *self.input_ids[first:last]),
            (*[False] * (start + 1), *self.targets[first + 1 : last]),
            source,
            0,
            tuple(start + turn.stop - first for turn in self.turns if turn.stop in kept),
        )
        check_example(example)
        return example
