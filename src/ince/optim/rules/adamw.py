"""AdamW (Loshchilov and Hutter, arXiv:1711.05101), equal to torch's to the bit.

The operations are those of `torch.optim.AdamW` with ``foreach=False``, in its order, each on one
stretch: a product that is rounded there is rounded here. In float32 on a CPU they are one operator,
which passes over memory once where torch does so ten times. It has no ``amsgrad``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ince.ops import adamw_step_
from ince.optim.rules.own_state import own_state
from ince.optim.rules.rule import Slot

__all__ = ["AdamWRule"]


class AdamWRule:
    """Options: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``maximize``."""

    name = "adamw"

    def slots(self, numel: int, dtype: torch.dtype) -> tuple[Slot, ...]:  # noqa: ARG002 - of any
        """Both moments, of the parameter's type, as torch has them."""
        return (Slot("exp_avg", dtype), Slot("exp_avg_sq", dtype))

    def step_(
        self,
        parameter: Tensor,
        gradient: Tensor,
        states: Mapping[str, Tensor],
        *,
        options: Mapping[str, Any],
        step: int,
    ) -> None:
        """Decay the parameter, move both moments, and step by what they say."""
        beta1, beta2 = options["betas"]
        lr = float(options["lr"])
        first, second = states["exp_avg"], states["exp_avg_sq"]
        if options.get("maximize", False):
            gradient = -gradient
        if parameter.dtype == torch.float32 and parameter.device.type == "cpu":
            # In 16 bits torch rounds moments, too, and a kernel of a GPU may round otherwise.
            adamw_step_(
                parameter,
                gradient,
                first,
                second,
                step=step,
                lr=lr,
                beta1=float(beta1),
                beta2=float(beta2),
                eps=float(options["eps"]),
                weight_decay=float(options["weight_decay"]),
            )
            return
        if options["weight_decay"] != 0:
            parameter.mul_(1 - lr * options["weight_decay"])
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(options["eps"])
        parameter.addcdiv_(first, denominator, value=-(lr / (1 - beta1**step)))

    def constants(self, numel: int, dtype: torch.dtype) -> Mapping[str, Tensor]:  # noqa: ARG002
        """None."""
        return {}

    def adopt(
        self, state: Mapping[str, Tensor], numel: int, dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        """The moments, as `torch.optim.AdamW` writes them."""
        return own_state(state, self.slots(numel, dtype), numel)
