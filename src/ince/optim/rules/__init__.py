"""What an optimizer does with a stretch of elements, whoever keeps its state."""

from ince.optim.rules.adamw import AdamWRule
from ince.optim.rules.adamw_8bit import AdamW8bitRule
from ince.optim.rules.lion import LionRule
from ince.optim.rules.lion_8bit import Lion8bitRule
from ince.optim.rules.rule import BLOCK, Rule, Slot

__all__ = ["BLOCK", "AdamW8bitRule", "AdamWRule", "Lion8bitRule", "LionRule", "Rule", "Slot"]
