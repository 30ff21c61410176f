"""AdamW (arXiv:1711.05101) with moments in 8 bits (arXiv:2110.02861).

The arithmetic is AdamW's in float32, between expanding a block of moments and coding it again.
Small tensors, which are norms and biases mostly, keep float32 moments.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ince.ops import adamw_8bit_step_, adamw_step_
from ince.optim.rules.coded import MIN_8BIT_SIZE, adopt_coded, coded_constants, coded_slots
from ince.optim.rules.rule import Slot

__all__ = ["AdamW8bitRule"]


class AdamW8bitRule:
    """Options: ``lr``, ``betas``, ``eps``, ``weight_decay``."""

    name = "adamw_8bit"
    num_moments = 2

    def slots(self, numel: int, dtype: torch.dtype) -> tuple[Slot, ...]:  # noqa: ARG002 - of any
        """Both moments, of float32 or in 8 bits with their scales."""
        return coded_slots(self.num_moments, coded=numel >= MIN_8BIT_SIZE)

    def step_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        states: Mapping[str, Tensor],
        *,
        options: Mapping[str, Any],
        step: int,
    ) -> None:
        """Expand the moments, move them and the parameter as AdamW does, and code them again."""
        beta1, beta2 = options["betas"]
        numbers: dict[str, Any] = {
            "step": step,
            "lr": float(options["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "eps": float(options["eps"]),
            "weight_decay": float(options["weight_decay"]),
        }
        moments = states["state1"], states["state2"]
        if states["state1"].dtype == torch.uint8:
            scales = states["absmax1"], states["absmax2"]
            adamw_8bit_step_(parameter, gradient, *moments, *scales, **numbers)
        else:
            adamw_step_(parameter, gradient, *moments, **numbers)

    def constants(self, numel: int, dtype: torch.dtype) -> Mapping[str, Tensor]:  # noqa: ARG002
        """What codes mean."""
        return coded_constants(self.num_moments, coded=numel >= MIN_8BIT_SIZE)

    def adopt(
        self,
        state: Mapping[str, Tensor],
        numel: int,
        dtype: torch.dtype,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """The moments, as this, bitsandbytes or `torch.optim.AdamW` writes them."""
        return adopt_coded(state, numel, self.num_moments, coded=numel >= MIN_8BIT_SIZE)
