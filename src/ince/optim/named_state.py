"""Optimizer state by the names of parameters: what a checkpoint keeps, and putting it back.

    NAME.exp_avg, NAME.exp_avg_sq, NAME.step            of AdamW
    NAME.state1, NAME.absmax1, NAME.qmap1, … NAME.step   of its 8-bit form

Keyed by name and not by number, tensors only: it is saved as safetensors and loads into any
order of parameters. Nothing is gathered: each tensor is had when it is written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ince.errors import CorruptFileError
from ince.optim.kept import parts_by_parameter
from ince.optim.paged import PagedOptimizer

__all__ = ["StateTensor", "load_optimizer_state", "optimizer_state", "state_tensors"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


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
    if isinstance(optimizer, PagedOptimizer):
        return [
            StateTensor(entry.name, tuple(entry.shape), entry.dtype, entry.read)
            for entry in optimizer.entries(parameters)
        ]
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


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """A copy of all of it, by name."""
    return {each.name: each.compute().clone() for each in state_tensors(optimizer, parameters)}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Tensor],
) -> None:
    """Put back what `state_tensors` named.

    Raises:
        CorruptFileError: a moment is missing, surplus or of another shape.
    """
    if isinstance(optimizer, PagedOptimizer):
        optimizer.load_entries(parameters, list(state), lambda name: state[name])
        return
    parts = parts_by_parameter(state, parameters)
    found: dict[nn.Parameter, dict[str, Tensor]] = {}
    for name, its in parts.items():
        moments = {moment: state[f"{name}.{moment}"] for moment in its}
        if isinstance(optimizer, torch.optim.AdamW):
            _check_moments(name, moments, parameters[name])
        found[parameters[name]] = moments
    if isinstance(optimizer, torch.optim.AdamW):
        for parameter, moments in found.items():
            # The count stays on the CPU, as torch keeps it; moments live with the parameter.
            optimizer.state[parameter] = {
                moment: value.clone() if moment == "step" else value.to(parameter.device)
                for moment, value in moments.items()
            }
        return
    groups = optimizer.state_dict()["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_number = {n: found[p] for n, p in zip(numbers, held, strict=True) if p in found}
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})


def _check_moments(name: str, moments: Mapping[str, Tensor], parameter: nn.Parameter) -> None:
    if set(moments) != set(_MOMENTS):
        raise CorruptFileError(
            "an optimizer moment is missing, or too many",
            where=name,
            got=", ".join(sorted(moments)),
            expected=", ".join(_MOMENTS),
        )
    for moment, value in moments.items():
        if moment != "step" and value.shape != parameter.shape:
            raise CorruptFileError(
                "an optimizer moment has another shape than its parameter",
                where=f"{name}.{moment}",
                got=tuple(value.shape),
                expected=tuple(parameter.shape),
            )
