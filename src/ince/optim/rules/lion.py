"""Lion (Chen et al., arXiv:2302.06675): the sign of a momentum, and one moment of state.

    c = β₁ m + (1 - β₁) g        θ ← (1 - η λ) θ - η sign(c)        m ← β₂ m + (1 - β₂) g

Each element moves by the learning rate, whatever the size of its gradient; rates are three to
ten times smaller than AdamW's and weight decay as much larger.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ince.optim.rules.own_state import own_state
from ince.optim.rules.rule import Slot

__all__ = ["LionRule"]


class LionRule:
    """Options: ``lr``, ``betas``, ``weight_decay``, ``maximize``."""

    name = "lion"

    def slots(self, numel: int, dtype: torch.dtype) -> tuple[Slot, ...]:  # noqa: ARG002 - of any
        """The momentum, of the parameter's type."""
        return (Slot("exp_avg", dtype),)

    def step_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        states: Mapping[str, Tensor],
        *,
        options: Mapping[str, Any],
        step: int,  # noqa: ARG002 - all steps are alike
    ) -> None:
        """Decay the parameter, step by the sign of the mixed momentum, and move the momentum."""
        beta1, beta2 = options["betas"]
        lr = float(options["lr"])
        momentum = states["exp_avg"]
        if options.get("maximize", False):
            gradient = -gradient
        if options["weight_decay"] != 0:
            parameter.mul_(1 - lr * options["weight_decay"])
        parameter.add_(momentum.lerp(gradient, 1 - beta1).sign_(), alpha=-lr)
        momentum.lerp_(gradient, 1 - beta2)

    def constants(self, numel: int, dtype: torch.dtype) -> Mapping[str, Tensor]:  # noqa: ARG002
        """None."""
        return {}

    def adopt(
        self, state: Mapping[str, Tensor], numel: int, dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        """The momentum."""
        return own_state(state, self.slots(numel, dtype), numel)
