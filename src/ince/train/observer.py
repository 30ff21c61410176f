"""What a run tells while it happens, and to whom: a progress display, a sweep, a test."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Observer", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """One step that was done.

    Attributes:
        step: how many are done, this one included.
        loss: mean over its targets, in nats.
        lr: learning rate, before the factors of groups.
        grad_norm: before clipping.
        num_tokens, num_targets: of this step.
        total_tokens, total_targets: of the run up to here.
        seconds: that it took.
        peak_bytes: the most memory the process has held so far.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    num_tokens: int
    num_targets: int
    total_tokens: int
    total_targets: int
    seconds: float
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were read, padding left out."""
        return self.num_tokens / self.seconds

    @property
    def target_tokens_per_second(self) -> float:
        """Tokens that were learnt."""
        return self.num_targets / self.seconds

    def line(self) -> dict[str, object]:
        """The step's line of ``log.jsonl``."""
        return {
            "step": self.step,
            "loss": self.loss,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "tokens": self.total_tokens,
            "target_tokens": self.total_targets,
            "tokens_per_second": self.tokens_per_second,
            "target_tokens_per_second": self.target_tokens_per_second,
            "peak_bytes": self.peak_bytes,
        }


class Observer(Protocol):
    """Is told what happens, in the order in which it does."""

    def started(self, first_step: int, num_steps: int) -> None:
        """The run begins (or goes on) after `first_step` of `num_steps`."""
        ...

    def stepped(self, report: StepReport) -> None:
        """A step is done."""
        ...

    def evaluated(self, step: int, loss: float) -> None:
        """The held-out loss after `step` is known."""
        ...

    def said(self, line: str) -> None:
        """Something a person should read."""
        ...
