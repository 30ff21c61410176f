"""Training: the loss, one step, the loop around it, and checkpoints that resume to the bit."""

from ince.train.config import TrainConfig
from ince.train.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
