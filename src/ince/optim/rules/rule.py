"""A rule: the arithmetic of an optimizer, over any stretch of a parameter.

An element-wise optimizer does the same to each element, or to each block of 256. So its state
may be cut anywhere between blocks, and lie in pages that are in memory, on a device or in a
file (`ince.optim.pages`). A rule says what state there is for each element and how a stretch of
it takes a step; where the state lives, and that a step is taken whole, is not its concern.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["BLOCK", "Rule", "Slot"]

BLOCK = 256
"""Stretches begin at multiples of this many elements: a block of 8-bit state has one scale, and
what a vector instruction takes at once divides it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of state that goes with a parameter. It starts as zeros."""

    name: str
    """As in the optimizer's state dict."""
    dtype: torch.dtype
    per: int = 1
    """Elements of the parameter for each of the slot; 1, or `BLOCK`."""

    def numel(self, num_elements: int) -> int:
        """Elements of the slot for so many of the parameter, of which the last block may be
        cut short.
        """
        return -(-num_elements // self.per)

    def shape(self, parameter: torch.Size) -> torch.Size:
        """In a state dict: the parameter's where each element has its own, else flat."""
        return parameter if self.per == 1 else torch.Size([self.numel(parameter.numel())])


class Rule(Protocol):
    """The arithmetic of an optimizer.

    A rule holds no state, and none of its options: those come with each call.
    """

    @property
    def name(self) -> str:
        """For errors and records, such as ``adamw``."""
        ...

    def slots(self, numel: int, dtype: torch.dtype) -> tuple[Slot, ...]:
        """The state of a parameter of `numel` elements, asked once, of the whole parameter."""
        ...

    def step_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        states: Mapping[str, Tensor],
        *,
        options: Mapping[str, Any],
        step: int,
    ) -> None:
        """Take a step in place.

        Args:
            parameter: (n,), a stretch of a parameter that begins at a multiple of `BLOCK`; n is
                a multiple of it too, unless the parameter ends there. Changed.
            gradient: (n,), of the same type and device. Not changed.
            states: by the names of the slots, (slot.numel(n),) each, on the same device. Changed.
            options: of the parameter's group, as in ``param_groups``.
            step: how many steps this one makes; 1 in the first.
        """
        ...

    def constants(self, numel: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """What the state dict of such a parameter has besides the slots, the same in every step
        (a map of 8-bit codes, say).
        """
        ...

    def adopt(
        self, state: Mapping[str, Tensor], numel: int, dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        """The slots' content out of a state dict's tensors for one parameter.

        Where the state was written by a kindred optimizer (float32 moments for an 8-bit rule),
        it is converted here.

        Args:
            state: by name, any shape, ``step`` left out.
            numel, dtype: of the parameter.

        Returns:
            By name of slot, of its number of elements, in any shape and of a type that converts.

        Raises:
            CorruptFileError: it is not the state of such a parameter.
        """
        ...
