"""Optimizers and the course of their learning rate."""

from ince.optim.adamw import build_optimizer, load_optimizer_state, optimizer_state
from ince.optim.schedule import learning_rate

__all__ = ["build_optimizer", "learning_rate", "load_optimizer_state", "optimizer_state"]
