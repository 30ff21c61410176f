"""The learning rate as a plain function of the step, so that resuming needs no state."""

import math
from typing import Literal

__all__ = ["Schedule", "learning_rate"]

Schedule = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int, *, num_steps: int, peak: float, schedule: Schedule, warmup_ratio: float
) -> float:
    """The rate of one step: a linear rise to `peak`, then the schedule.

    Args:
        step: from 0 to ``num_steps - 1``.
        num_steps: of the whole run.
        peak: the highest rate, reached at the end of warm-up.
        schedule: ``cosine`` and ``linear`` fall towards zero, ``constant`` stays.
        warmup_ratio: share of the steps that the rise takes, rounded up to whole steps.
    """
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * ((step + 1) / num_warmup)
    if schedule == "constant":
        return peak
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "linear":
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
