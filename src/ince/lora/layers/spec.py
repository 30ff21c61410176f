"""`AdapterSpec`: size and scale of one adapter in one layer."""

from dataclasses import dataclass

__all__ = ["AdapterSpec"]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What an adapter is in one layer, its patterns applied.

    Attributes:
        r: rank.
        alpha: numerator of the scale, for the record.
        scaling: s, which multiplies the update.
        dropout: share of the update's inputs that are dropped in training.
        variant: key of `ince.lora.variants.VARIANTS`.
        bias: whether B has a bias (PEFT's ``lora_bias``).
        kept: of AdaLoRA, which of the ranks that it began with are here; None for all.
    """

    r: int
    alpha: float
    scaling: float
    dropout: float = 0.0
    variant: str = "lora"
    bias: bool = False
    kept: tuple[bool, ...] | None = None
