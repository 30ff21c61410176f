"""What of a run has to survive its end: counters and bookkeeping, as plain JSON values.

A checkpoint holds this beside its tensors, and nothing else: whatever decides how a run goes
on is a field here, a tensor there, or a function of the config, the data and the step.
"""

from dataclasses import dataclass

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

    micro_batch_tokens: int | None = None
    """Tokens in one forward, at most; None: all of the step's. What memory made of the config."""
