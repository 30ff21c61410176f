"""One example: tokens, and which of them are to be predicted."""

from dataclasses import dataclass

__all__ = ["IGNORED", "Example"]

IGNORED = -100
"""The label that carries no loss."""


@dataclass(frozen=True)
class Example:
    """Tokens to train on.

    Attributes:
        input_ids: at least one.
        targets: for each token, whether it is to be predicted. Never the first one: nothing
            comes before it.
        source: where it comes from, such as ``train.jsonl, line 12``.
        num_truncated: tokens of its row that were cut off.
        stops: places of the stop tokens of the turns that are learnt, those of turns that were
            cut left out. Each of them is a target.
    """

    input_ids: tuple[int, ...]
    targets: tuple[bool, ...]
    source: str
    num_truncated: int = 0
    stops: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Length of the example."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return sum(self.targets)
