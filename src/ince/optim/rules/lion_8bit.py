"""Lion (arXiv:2302.06675) with its moment in 8 bits (arXiv:2110.02861).

Small tensors keep a float32 moment.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ince.ops import lion_8bit_step_, lion_step_
from ince.optim.rules.coded import MIN_8BIT_SIZE, adopt_coded, coded_constants, coded_slots
from ince.optim.rules.rule import Slot

__all__ = ["Lion8bitRule"]


class Lion8bitRule:
    """Options: ``lr``, ``betas``, ``weight_decay``."""

    name = "lion_8bit"
    num_moments = 1

    def slots(self, numel: int, dtype: torch.dtype) -> tuple[Slot, ...]:  # noqa: ARG002 - of any
        """The moment, of float32 or in 8 bits with its scales."""
        return coded_slots(self.num_moments, coded=numel >= MIN_8BIT_SIZE)

    def step_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        states: Mapping[str, Tensor],
        *,
        options: Mapping[str, Any],
        step: int,  # noqa: ARG002 - all steps are alike
    ) -> None:
        """Expand the moment, step by the sign as Lion does, move the moment and code it again."""
        beta1, beta2 = options["betas"]
        numbers: dict[str, Any] = {
            "lr": float(options["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "weight_decay": float(options["weight_decay"]),
        }
        if states["state1"].dtype == torch.uint8:
            moment = states["state1"], states["absmax1"]
            lion_8bit_step_(parameter, gradient, *moment, **numbers)
        else:
            lion_step_(parameter, gradient, states["state1"], **numbers)

    def constants(self, numel: int, dtype: torch.dtype) -> Mapping[str, Tensor]:  # noqa: ARG002
        """What codes mean."""
        return coded_constants(self.num_moments, coded=numel >= MIN_8BIT_SIZE)

    def adopt(
        self,
        state: Mapping[str, Tensor],
        numel: int,
        dtype: torch.dtype,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """The moment, as this or bitsandbytes writes it, or in float32."""
        return adopt_coded(state, numel, self.num_moments, coded=numel >= MIN_8BIT_SIZE)
