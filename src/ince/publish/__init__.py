"""What leaves the house: a standalone model, and the proof that it is the one that was trained."""

from ince.publish.merge import merge_to_folder
from ince.publish.parity import Parity, assert_parity, compare_logits

__all__ = ["Parity", "assert_parity", "compare_logits", "merge_to_folder"]
