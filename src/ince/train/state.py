"""What of a run has to survive its end: counters and bookkeeping, as plain JSON values.

A checkpoint holds this beside its tensors, and nothing else: whatever decides how a run goes
on is a field here, a tensor there, or a function of the config, the data and the step.
"""

from dataclasses import dataclass, field

__all__ = ["TrainState"]


@dataclass
class TrainState:
    """A run after `step` optimizer steps."""

    recipe_digest: str
    """Of the recipe, the base and the data; a checkpoint goes with no other."""

    step: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    seconds: float = 0.0
    """Spent in steps, over all sittings."""

    first_loss: float | None = None
    last_loss: float | None = None

    num_skipped: int = 0
    """Steps that were passed over, their loss or gradient not being finite."""

    skipped_in_a_row: list[list[str]] = field(default_factory=list[list[str]])
    """Rows of the steps passed over since the last that was not."""

    num_spikes: int = 0
    recent_losses: list[float] = field(default_factory=list[float])
    """Of the latest steps, the newest last: what a spike is measured against."""

    best_loss: float | None = None
    best_step: int | None = None
    """The lowest held-out loss and the step after which it was measured."""

    loss_to_beat: float | None = None
    evaluations_without_gain: int = 0
    """Of early stopping: the last held-out loss that was a gain, and how many came since."""

    stopped_early: bool = False

    micro_batch_tokens: int | None = None
    """Tokens in one forward, at most; None: all of the step's. What memory made of the config."""
