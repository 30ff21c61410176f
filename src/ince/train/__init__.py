"""Training: the loss, one step, the loop around it, and checkpoints that resume to the bit."""

from ince.train.config import TrainConfig
from ince.train.loop import TrainResult, train
from ince.train.observer import Observer, StepReport

__all__ = ["Observer", "StepReport", "TrainConfig", "TrainResult", "train"]
