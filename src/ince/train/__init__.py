"""Training: the loss, one step, the loop around it, and checkpoints that resume to the bit."""

from ince.train.config import EarlyStopping, TrainConfig
from ince.train.loop import TrainResult, train
from ince.train.observer import Observer, StepReport

__all__ = [
    "EarlyStopping",
    "Observer",
    "StepReport",
    "TrainConfig",
    "TrainResult",
    "train",
]
