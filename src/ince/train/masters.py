"""Float32 originals of what learns, where a model holds it in 16 bits.

A step changes a weight by about a thousandth of itself, and bfloat16 rounds to one part in 256:
updates would be lost. So the optimizer has an original in float32 of each such weight, gradients
of micro-batches add up in float32 beside it, and after each update the model gets the rounded
values. What a model holds in float32 is its own original: on a processor that only emulates
bfloat16 there is nothing here.

Not autocast: the model computes with 16-bit weights as it would without training, and a gradient
in 16 bits is gone as soon as it is taken over.
"""

import weakref
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Masters"]


class Masters:
    """`parameters` by name, all in float32; what is float32 already is itself."""

    def __init__(self, held: Mapping[str, nn.Parameter]) -> None:
        """Take the values of `held`, and from now on the gradients that reach it.

        Args:
            held: by name, as the model has it.
        """
        self.parameters: dict[str, nn.Parameter] = {}
        self._apart: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._handles: list[RemovableHandle] = []
        for name, parameter in held.items():
            if parameter.dtype == torch.float32:
                self.parameters[name] = parameter
                continue
            master = nn.Parameter(parameter.detach().float())
            self.parameters[name] = master
            self._apart.append((parameter, master))
            self._handles.append(_hand_over(parameter, master))

    @torch.no_grad()
    def publish(self) -> None:
        """Give the model the originals' values, rounded."""
        for parameter, master in self._apart:
            parameter.copy_(master)


def _hand_over(parameter: nn.Parameter, master: nn.Parameter) -> RemovableHandle:
    # The model outlives the run, and must not keep the originals.
    reference = weakref.ref(master)

    def take(_: torch.Tensor) -> None:
        original, gradient = reference(), parameter.grad
        if original is None or gradient is None:
            return
        if original.grad is None:
            original.grad = gradient.float()
        else:
            original.grad.add_(gradient)
        parameter.grad = None

    return parameter.register_post_accumulate_grad_hook(take)
