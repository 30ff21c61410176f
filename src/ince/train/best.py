"""Which held-out loss was the best, and whether a better one is worth waiting for.

Two questions that look alike. The *best* step is the one of the lowest loss, by however
little. *Patience* asks for a gain that counts: it ends when so many evaluations in a row have
not come below the last loss that did count by more than `min_delta`. So a loss that creeps
down is kept as the best each time, and stops the run only if all its creeping is not worth
`min_delta` within the patience.

All that this knows is in `TrainState`, written in one piece with the parameters, so a run that
is cut off between an evaluation and its checkpoint evaluates again and decides the same.
"""

import math

from ince.train.config import EarlyStopping
from ince.train.state import TrainState

__all__ = ["note_evaluation"]


def note_evaluation(
    state: TrainState, loss: float, *, early_stopping: EarlyStopping | None
) -> bool:
    """Take in the held-out loss after ``state.step``; returns whether it is the best so far.

    Sets ``state.stopped_early`` when patience has run out. A loss that is not finite is never
    the best, and no gain.
    """
    is_best = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
    if is_best:
        state.best_loss, state.best_step = loss, state.step
    if early_stopping is None:
        return is_best
    before = state.loss_to_beat
    if math.isfinite(loss) and (before is None or loss < before - early_stopping.min_delta):
        state.loss_to_beat = loss
        state.evaluations_without_gain = 0
    else:
        state.evaluations_without_gain += 1
    state.stopped_early = state.evaluations_without_gain >= early_stopping.patience
    return is_best
