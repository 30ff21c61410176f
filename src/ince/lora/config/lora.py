"""`LoraConfig`: low-rank updates, their variants and their starts.

A config says which modules are adapted, at which rank and scale, and how they start. It is
frozen: what was trained is what is written down.

Source of the fields: Hugging Face PEFT; LoRA, arXiv:2106.09685.
"""

import math
from typing import ClassVar

from pydantic import Field

from ince.lora.config.family import LoraFamilyConfig
from ince.lora.config.fields import Alpha, PatternTable, Rank

__all__ = ["LoraConfig"]


class LoraConfig(LoraFamilyConfig):
    """Settings of one LoRA adapter.

    ``y = W x + s · B(A x)`` with ``s = lora_alpha / r``, A: (r, in), B: (out, r).

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    _title: ClassVar[str] = "LoRA"
    peft_type: ClassVar[str] = "LORA"
    """The method, as files call it."""

    lora_alpha: Alpha = 8
    """Numerator of the scale s = lora_alpha / r."""
    rank_pattern: PatternTable[Rank] = Field(default_factory=dict)
    """Other ranks, by suffix or regular expression."""

    def scaling(self, r: int, alpha: float) -> float:
        """The factor s of a layer of rank `r` and this `alpha`."""
        return alpha / (math.sqrt(r) if self.use_rslora else r)
