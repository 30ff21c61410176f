"""What a step's loss says about the step: taken, taken and remarkable, or not to be taken.

A loss or gradient that is not finite would poison parameters and moments for good, so its step
is passed over: nothing is updated, and training goes on with the next rows. Several in a row
are no accident, and end the run.

A spike is a finite loss far above those before it: above their median by six standard
deviations, estimated from the median absolute deviation, which a spike itself hardly moves, and
by a tenth of the median at least. It is taken (gradient clipping bounds its harm) and noted
with its rows, since a mislabeled or foreign row is the usual cause.

All that this knows is in `TrainState`, so a resumed run judges as an uninterrupted one does.
"""

import math
from statistics import median

from ince.errors import TrainingError
from ince.train.state import TrainState
from ince.train.step import StepGradient

__all__ = ["is_usable", "note_loss", "note_skipped"]

_WINDOW = 64
_FEWEST = 16
"""Losses of which a deviation can be told."""

_DEVIATIONS = 6.0
_SIGMA_OF_MAD = 1.4826  # of a normal distribution
_LEAST_EXCESS = 0.1

_MAX_SOURCES = 8
"""Rows named of one step; a packed step may hold hundreds."""


def is_usable(gradient: StepGradient) -> bool:
    """Loss and gradient are finite."""
    return math.isfinite(gradient.loss) and math.isfinite(gradient.grad_norm)


def note_skipped(
    state: TrainState, gradient: StepGradient, *, max_in_a_row: int
) -> dict[str, object]:
    """Count a step that is passed over; returns its event for the log.

    Raises:
        TrainingError: it is one too many in a row; the rows of all of them are named.
    """
    state.num_skipped += 1
    sources = list(gradient.suspects[:_MAX_SOURCES])
    state.skipped_in_a_row.append(sources)
    got = f"loss {gradient.loss}, gradient norm {gradient.grad_norm}"
    if len(state.skipped_in_a_row) >= max_in_a_row:
        number = len(state.skipped_in_a_row)
        rows = dict.fromkeys(source for step in state.skipped_in_a_row for source in step)
        steps = "a step" if number == 1 else f"{number} steps in a row"
        raise TrainingError(
            f"loss or gradient is not finite at step {state.step + 1}: {steps} without an update",
            where=", ".join(rows),
            got=got,
            expected=f"fewer than {max_in_a_row} such steps in a row (train.max_skipped_steps)",
            do="lower train.lr, or look at the rows named; the last checkpoint is good",
        )
    return {"event": "skipped", "what": got, "sources": sources}


def note_loss(state: TrainState, gradient: StepGradient) -> dict[str, object] | None:
    """Take the loss of a step that was updated into the record; its event when it is a spike."""
    before = state.recent_losses
    limit = _limit(before)
    state.recent_losses = [*before, gradient.loss][-_WINDOW:]
    state.skipped_in_a_row = []
    if limit is None or gradient.loss <= limit:
        return None
    state.num_spikes += 1
    return {
        "event": "spike",
        "spike_loss": gradient.loss,
        "limit": limit,
        "sources": list(gradient.sources[:_MAX_SOURCES]),
    }


def _limit(losses: list[float]) -> float | None:
    """Above it a loss is a spike; None while too few are known."""
    if len(losses) < _FEWEST:
        return None
    middle = median(losses)
    deviation = _SIGMA_OF_MAD * median(abs(loss - middle) for loss in losses)
    return middle + max(_DEVIATIONS * deviation, _LEAST_EXCESS * abs(middle))
