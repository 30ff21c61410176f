"""What a run tells while it happens, and to whom: a progress display, a sweep, a test."""

import math
from dataclasses import dataclass
from typing import Protocol

from ince.optim import PagesUsage

__all__ = ["Observer", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """One step that was done.

    Attributes:
        step: how many are done, this one included.
        loss: mean over its targets, in nats; not finite where `skipped`.
        lr: learning rate, before the factors of groups.
        grad_norm: before clipping.
        num_tokens, num_targets: of this step.
        total_tokens, total_targets: of the run up to here.
        seconds: that it took.
        peak_bytes: the most memory that was held: in the step, where the loop measures it.
        held_bytes: what is held after it; 0 where that is not known.
        num_skipped: steps of the run that were passed over, up to here.
        skipped: it was passed over itself, and nothing was updated.
        best_step, best_loss: of the run's evaluations up to here; None where there was none.
        event: what is remarkable about it, for the log.
        pages: where the optimizer's state is; None where it does not page.
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
    held_bytes: int = 0
    num_skipped: int = 0
    skipped: bool = False
    best_step: int | None = None
    best_loss: float | None = None
    event: dict[str, object] | None = None
    pages: PagesUsage | None = None

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were read, padding left out."""
        return self.num_tokens / self.seconds

    @property
    def target_tokens_per_second(self) -> float:
        """Tokens that were learnt."""
        return self.num_targets / self.seconds

    def line(self) -> dict[str, object]:
        """The step's line of ``log.jsonl``; JSON has no word for what is not finite."""
        return {
            "step": self.step,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "lr": self.lr,
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None,
            "tokens": self.total_tokens,
            "target_tokens": self.total_targets,
            "tokens_per_second": self.tokens_per_second,
            "target_tokens_per_second": self.target_tokens_per_second,
            "peak_bytes": self.peak_bytes,
            **({"skipped": True} if self.skipped else {}),
            **({} if self.pages is None else {"pages": _tiers(self.pages)}),
        }


def _tiers(pages: PagesUsage) -> dict[str, object]:
    return {
        "device_bytes": pages.device_bytes,
        "memory_bytes": pages.memory_bytes,
        "file_bytes": pages.file_bytes,
        "waited_seconds": round(pages.waited_seconds, 4),
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
