"""Finding settings: the learning-rate range test, and sweeps that stop the losers."""

from ince.search.grid import Candidate, build_candidates, choose_values, parse_axes
from ince.search.lr_find import find_lr
from ince.search.sweep import Sweep

__all__ = ["Candidate", "Sweep", "build_candidates", "choose_values", "find_lr", "parse_axes"]
