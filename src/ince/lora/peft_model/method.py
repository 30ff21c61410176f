"""`PeftType`: the methods that ince builds, as files name them."""

from enum import StrEnum

__all__ = ["PeftType"]


class PeftType(StrEnum):
    """A method of adaptation; equal to its name as a string."""

    LORA = "LORA"
    ADALORA = "ADALORA"
    VERA = "VERA"
