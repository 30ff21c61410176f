"""One example: tokens, and which of them are to be predicted."""

from dataclasses import dataclass

__all__ = ["Example"]


@dataclass(frozen=True)
class Example:
    """Tokens to train on.

    Attributes:
        input_ids: at least one.
        targets: for each token, whether it is to be predicted. Never the first one: nothing
            comes before it.
        source: where it comes from, such as ``train.jsonl, line 12``.
        num_truncated: tokens that were cut off at the end.
    """

    input_ids: tuple[int, ...]
    targets: tuple[bool, ...]
    source: str
    num_truncated: int = 0

    @property
    def num_tokens(self) -> int:
        """Length of the example."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return sum(self.targets)
