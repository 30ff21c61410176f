"""What an optimizer does with a stretch of elements, whoever keeps its state."""

from ince.optim.rules.adamw import AdamWRule
from ince.optim.rules.lion import LionRule
from ince.optim.rules.rule import BLOCK, Rule, Slot

__all__ = ["BLOCK", "AdamWRule", "LionRule", "Rule", "Slot"]
