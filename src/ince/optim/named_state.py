"""Optimizer state by the names of parameters, each tensor had when it is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["StateTensor", "state_tensors"]


@dataclass(frozen=True)
class StateTensor:
    """A tensor of state that is yet to be had.

    Attributes:
        name: of the parameter and of the moment, with a dot between.
        shape, dtype: of the tensor.
        compute: gives it; it is not to be changed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[[], Tensor]


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> list[StateTensor]:
    """The state of `parameters`, none of it had yet; nothing before the first step."""
    found: list[StateTensor] = []
    for name, parameter in parameters.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
            found.append(
                StateTensor(
                    f"{name}.{moment}",
                    tuple(tensor.shape),
                    tensor.dtype,
                    lambda tensor=tensor: tensor,
                )
            )
    return found
