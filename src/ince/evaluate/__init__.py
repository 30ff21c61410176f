"""What a model is worth, in numbers that can be compared: before and after, with intervals."""

from ince.evaluate.answers import ChrF, chrf, exact_match, normalize, restored_word_accuracy
from ince.evaluate.bootstrap import Interval, paired_bootstrap
from ince.evaluate.loss import DocumentLoss, LossResult, heldout_loss, target_losses
from ince.evaluate.text import TextLoss, bits_per_byte, read_passages

__all__ = [
    "ChrF",
    "DocumentLoss",
    "Interval",
    "LossResult",
    "TextLoss",
    "bits_per_byte",
    "chrf",
    "exact_match",
    "heldout_loss",
    "normalize",
    "paired_bootstrap",
    "read_passages",
    "restored_word_accuracy",
    "target_losses",
]
