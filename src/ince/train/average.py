"""The exponential moving average of an adapter, in float32.

Late in training an adapter wanders about a minimum, by as much as learning rate and batch
noise allow; the average of its places is nearer to it. After each update

    average ← d · average + (1 − d) · parameters,    d = min(decay, (1 + n) / (10 + n))

with n the updates before. The smaller d of the beginning lets the average forget where the
adapter started, which for B is zero: with a constant 0.999, two hundred updates would leave
four fifths of it there.

Training goes on from the parameters themselves; the average is what is measured, and what the
run results in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ince.train.parameters import fill

__all__ = ["AdapterAverage"]


class AdapterAverage:
    """Float32 shadows of trained parameters; `tensors` by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Start at the parameters as they are.

        Args:
            parameters: by name.
            decay: the largest d, between 0 and 1.
        """
        self._parameters = parameters
        self._decay = decay
        self.tensors: dict[str, Tensor] = {
            name: p.detach().float().clone().contiguous() for name, p in parameters.items()
        }

    @torch.no_grad()
    def update(self, num_before: int) -> None:
        """Take in the parameters after an update; `num_before` came before it."""
        decay = min(self._decay, (1 + num_before) / (10 + num_before))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters have the average's values; afterwards their own, to the bit."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        fill(self._parameters, self.tensors, where="the average")
        try:
            yield
        finally:
            fill(self._parameters, own, where="the average")
